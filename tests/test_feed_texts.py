"""Text files as samples: lines through the tokenizer beside them, in the form of the model's inputs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

import sparsecc
from sparsecc.data.files import feeds_from
from sparsecc.errors import InputError

tokenizers = pytest.importorskip("tokenizers")

WORDS = {"[UNK]": 0, "the": 1, "cat": 2, "sat": 3, "on": 4, "mat": 5}
LINES = "the cat sat\n\n  on the mat  \nthe dog\n"


@pytest.fixture
def text(tmp_path: Path) -> Path:
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(WORDS, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "lines.txt").write_text(LINES)
    return tmp_path / "lines.txt"


def model_of(inputs: str) -> ir.Model:
    return ir.from_onnx_text(
        f'<ir_version: 8, opset_import: ["": 17]> g ({inputs}) => (int64[n, t] y) {{ y = Identity(ids) }}'
    )


def test_each_line_is_a_sample(text: Path) -> None:
    found = [feeds["ids"] for feeds in feeds_from(str(text), model_of("int64[n, t] ids"))]
    assert [ids.tolist() for ids in found] == [[[1, 2, 3]], [[4, 1, 5]], [[1, 0]]]


def test_lines_are_cut_and_filled_to_the_length_of_the_model(text: Path) -> None:
    names = ("input_ids", "attention_mask", "token_type_ids", "position_ids")
    model = model_of(
        ", ".join(f"int64[n, {size}] {name}" for name, size in zip(names, (4, 4, 4, 4), strict=True))
    )
    *_, last = feeds_from(str(text), model)
    assert {name: array.tolist() for name, array in last.items()} == {
        "input_ids": [[1, 0, 0, 0]],
        "attention_mask": [[1, 1, 0, 0]],
        "token_type_ids": [[0, 0, 0, 0]],
        "position_ids": [[0, 1, 2, 3]],
    }
    first = next(feeds_from(str(text), model_of("int64[n, 2] ids")))
    assert first["ids"].tolist() == [[1, 2]]


def test_what_is_missing_is_said_in_one_line(text: Path) -> None:
    with pytest.raises(InputError, match="input 'image' is none of input_ids"):
        next(feeds_from(str(text), model_of("int64[n, t] input_ids, float[n, 3] image")))
    text.with_name("tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match="tokenizers cannot use it"):
        next(feeds_from(str(text), model_of("int64[n, t] ids")))
    text.with_name("tokenizer.json").unlink()
    with pytest.raises(InputError, match="put the model's tokenizer"):
        next(feeds_from(str(text), model_of("int64[n, t] ids")))


@pytest.mark.parametrize("kind", ["int64", "int32"])
def test_a_language_model_is_calibrated_on_text(kind: str, text: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    shapes = {"table": (6, 8), "up": (8, 32), "down": (32, 6)}
    model = ir.from_onnx_text(
        f'<ir_version: 8, opset_import: ["": 17]> g ({kind}[n, t] ids) => (float[n, t, 6] y) '
        "{ e = Gather(table, ids) h = MatMul(e, up) r = Relu(h) y = MatMul(r, down) }",
        initializers=[
            ir.tensor(rng.normal(size=s).astype(np.float32), name=name) for name, s in shapes.items()
        ],
    )
    ir.save(model, tmp_path / "m.onnx")
    result = sparsecc.compile(
        tmp_path / "m.onnx", ratio=0.4, calib=str(text), measure=False, output=tmp_path / "out"
    )
    (calibrated,) = [one["facts"] for one in result.report["passes"] if one["name"] == "calibrate"]
    assert calibrated["samples"] == 3
