"""Folders of language models: in as their runtime loads them, out so that it loads them again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from sparsecc import CompileResult, api
from sparsecc.compilation import Compilation
from sparsecc.errors import InputError
from sparsecc.loading.package import package_at
from sparsecc.options import CompileOptions
from sparsecc.reference.masked_channels import masked
from sparsecc.runtime.session import OrtRunner, open_session
from sparsecc.system.scratch import Scratch
from sparsecc.tasks.stages import DECIDING, Work, walk
from tests.decoder_models import Decoder

PLAIN = """<ir_version: 10, opset_import: ["" : 18]>
g (float[n, 4] x) => (float[n, 4] y)
<float[4, 4] w = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16}>
{ h = MatMul (x, w)
  a = Relu (h)
  y = MatMul (a, w) }"""
PROMPT = [1, 9, 2, 33, 17]
LENGTH = 64


def compiled(folder: Path, output: Path, **options: Any) -> CompileResult:
    return api.compile(folder, output=output, measure=False, calib="none", **options)


def masked_model(folder: Path, scratch: Path, **options: Any) -> OrtRunner:
    """The dense model with what a compile would remove masked, at dense sizes."""
    given = CompileOptions.of({**options, "measure": False, "calib": "none"})
    work = walk(Work(Compilation.opened_at(folder, given, Scratch(scratch))), DECIDING)
    ir.save(masked(work.analysis, work.decision.choice.keep), scratch / "masked.onnx")
    return open_session(scratch / "masked.onnx", level="none")


def greedy(model: OrtRunner, caches: dict[str, np.ndarray], length: int = LENGTH) -> list[int]:
    """The likeliest token again and again, from PROMPT on."""
    text, new = list(PROMPT), list(PROMPT)
    while len(text) < length:
        feeds = {"input_ids": np.array([new]), "attention_mask": np.ones((1, len(text)), np.int64), **caches}
        found = model.run(feeds)
        new = [int(found["logits"][0, -1].argmax())]
        text += new
        caches = {name: found[name.replace("past_key_values", "present")] for name in caches}
    return text


def empty_caches(file: Path) -> dict[str, np.ndarray]:
    shapes = {
        v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in onnx.load(file).graph.input
    }
    return {n: np.zeros((1, s[1], 0, s[3]), np.float32) for n, s in shapes.items() if n.startswith("past")}


@pytest.mark.parametrize("window", [0, 16])
def test_a_runtime_generates_from_the_result_alone(window: int, tmp_path: Path) -> None:
    """The tokens of onnxruntime-genai are those of the masked dense model; the original has gone meanwhile."""
    genai = pytest.importorskip(
        "onnxruntime_genai", reason="onnxruntime-genai is not installed: pip install 'sparsecc[language]'"
    )
    decoder = Decoder(positions=LENGTH + 1, window=window)
    folder = decoder.folder(tmp_path / "dense")
    options: dict[str, Any] = {"ratio": 0.4, "metric": "params", "keep": ["model.embed_tokens.weight:1"]}
    (tmp_path / "scratch").mkdir()
    dense = masked_model(folder, tmp_path / "scratch", **options)
    room = {f"past_key_values.{n}.{part}": window * (n == 0) for n in range(2) for part in ("key", "value")}
    wanted = greedy(dense, {name: np.zeros((1, 4, size, 16), np.float32) for name, size in room.items()})
    config = decoder.config()
    config["model"]["eos_token_id"] = min({*range(64)} - {*wanted})  # so that nothing ends early
    (folder / "genai_config.json").write_text(json.dumps(config))
    result = compiled(folder, tmp_path / "out", **options)
    shutil.rmtree(folder)
    assert result.report["package"]["sizes"].keys() >= {"num_key_value_heads", "num_attention_heads"}
    model = genai.Model(str(tmp_path / "out"))
    params = genai.GeneratorParams(model)
    params.set_search_options(max_length=LENGTH, do_sample=False)
    generator = genai.Generator(model, params)
    generator.append_tokens(PROMPT)
    while not generator.is_done():
        generator.generate_next_token()
    found = [int(token) for token in generator.get_sequence(0)]
    assert found == wanted


def test_caches_of_a_sliding_window_are_numbered_anew(tmp_path: Path) -> None:
    """The first and third of four layers keep the last positions alone; attentions go, of both kinds or one."""
    folder = Decoder(layers=4, window=16).folder(tmp_path / "dense")
    options: dict[str, Any] = {"ratio": 0.25, "metric": "params", "prune": ["layers"]}
    report = compiled(folder, tmp_path / "out", **options).report
    assert report["verification"]["status"] == "proved"
    config = json.loads((tmp_path / "out" / "genai_config.json").read_text())["model"]["decoder"]
    graph = onnx.load(tmp_path / "out" / "model.onnx").graph
    attentions = [node for node in graph.node if node.op_type == "GroupQueryAttention"]
    slide = [any(a.name == "sliding_window_cache" and a.i for a in node.attribute) for node in attentions]
    assert config["num_hidden_layers"] == len(attentions) < 4
    assert config["sliding_window"]["layers"] == [n for n, slides in enumerate(slide) if slides]
    assert any(slide)


def test_prompts_and_steps_are_timed_apart(tmp_path: Path) -> None:
    """A step is one token behind a cache of as many as a prompt has, up to what the model knows."""
    folder = Decoder(layers=1, positions=48).folder(tmp_path / "dense")
    report = api.compile(
        folder, output=tmp_path / "out", ratio=0.3, metric="params", calib="none", next_steps=False
    ).report
    assert report["measured_at"]["input_ids"] == [1, 1]
    assert report["measured_at"]["past_key_values.0.key"] == [1, 4, 47, 16]
    assert report["prompt"]["tokens"] == 48
    assert {*report["prompt"]} >= {"before_ms", "after_ms", "speedup"}


@pytest.mark.parametrize("prune", [["heads", "channels"], ["layers"]])
def test_a_budget_of_cache(prune: list[str], tmp_path: Path) -> None:
    """`--metric kv` counts bytes of cache a position, which the caches of the result confirm."""
    folder = Decoder(layers=3).folder(tmp_path / "dense")
    options: dict[str, Any] = {"ratio": 0.3, "metric": "kv", "prune": prune}
    report = compiled(folder, tmp_path / "out", **options).report
    assert report["verification"]["status"] == "proved"
    assert report["removed"]["share"] == pytest.approx(1 - report["after"]["kv"] / report["before"]["kv"])
    assert 0.3 <= report["removed"]["share"] <= 0.5
    assert report["before"]["kv"] == 3 * 2 * 4 * 4 * 16
    left = empty_caches(tmp_path / "out" / "model.onnx").values()
    assert report["after"]["kv"] == sum(4 * cache.shape[1] * cache.shape[3] for cache in left)


def test_what_no_cache_holds_stays_in_such_a_budget(tmp_path: Path) -> None:
    folder = Decoder().folder(tmp_path / "dense")
    options: dict[str, Any] = {"ratio": 0.3, "metric": "kv", "only": ["*mlp*"]}
    report = compiled(folder, tmp_path / "out", **options).report
    assert not report["removed"]["reached"]
    assert report["before"]["macs"] == report["after"]["macs"]


def test_without_caches_there_is_no_such_budget(tmp_path: Path) -> None:
    onnx.save(onnx.parser.parse_model(PLAIN), tmp_path / "plain.onnx")
    with pytest.raises(InputError, match="--metric kv: the model has no caches"):
        compiled(tmp_path / "plain.onnx", tmp_path / "out", ratio=0.3, metric="kv")


def test_the_configuration_says_what_is_left(tmp_path: Path) -> None:
    folder = Decoder().folder(tmp_path / "dense")
    (folder / "tokenizer.json").write_text("{}")
    config = json.loads((folder / "genai_config.json").read_text())
    config["model"]["decoder"]["sliding_window"] = {
        "window_size": 4096,
        "layers": [],
    }  # as the builder has it
    (folder / "genai_config.json").write_text(json.dumps(config))
    result = compiled(folder, tmp_path / "out", ratio=0.3, metric="params", prune=["heads"])
    assert "sliding_window" not in (tmp_path / "out" / "genai_config.json").read_text()
    before, after = (
        json.loads((f / "genai_config.json").read_text())["model"] for f in (folder, tmp_path / "out")
    )
    shapes = {n: a.shape[1] for n, a in empty_caches(tmp_path / "out" / "model.onnx").items()}
    assert after["decoder"]["num_key_value_heads"] == max(shapes.values()) < 4
    assert before["decoder"]["inputs"] == after["decoder"]["inputs"]
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()
    checks = {c["check"]: c["status"] for c in api.verify(tmp_path / "out", model=folder)["checks"]}
    assert (checks["manifest"], checks["original"]) == ("ok", "ok")
    assert result.report["package"]["copied"] == ["tokenizer.json"]


def test_a_hugging_face_folder_is_one_as_well(tmp_path: Path) -> None:
    folder = Decoder().folder(tmp_path / "dense")
    (folder / "genai_config.json").unlink()
    config = {"model_type": "llama", "hidden_size": 32, "num_attention_heads": 8, "num_key_value_heads": 4}
    (folder / "config.json").write_text(json.dumps(config))
    compiled(folder, tmp_path / "out", ratio=0.3, metric="params", prune=["channels"])
    found = json.loads((tmp_path / "out" / "config.json").read_text())
    assert found["hidden_size"] < 32
    assert found["head_dim"] == 16  # no longer hidden_size / num_attention_heads


def test_nothing_in_the_folder_runs_or_leads_out(tmp_path: Path) -> None:
    """Libraries that a configuration names, code beside the model and links stay behind."""
    decoder = Decoder()
    folder = decoder.folder(tmp_path / "dense")
    config = decoder.config()
    config["model"]["decoder"]["session_options"] |= {
        "custom_ops_library": "evil.so",
        "enable_profiling": "evil_trace",
        "ep.option": "evil",
        "provider_options": [{"QNN": {"backend_path": "evil.so", "vendor": "../evil", "htp_arch": "73"}}],
    }
    about = {"auto_map": {"AutoTokenizer": "evil--tokenizer.Evil"}, "bos_token": "<s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(about))
    (folder / "genai_config.json").write_text(json.dumps(config))
    (folder / "modeling_evil.py").write_text("raise SystemExit('run')")
    (folder / "evil.so").write_bytes(b"\x7fELF")
    (tmp_path / "secret.txt").write_text("secret")
    (folder / "vocab.txt").symlink_to(tmp_path / "secret.txt")
    result = compiled(folder, tmp_path / "out", ratio=0.2)
    text = (tmp_path / "out" / "genai_config.json").read_text()
    assert "evil" not in text
    assert '"htp_arch": "73"' in text
    assert json.loads((tmp_path / "out" / "tokenizer_config.json").read_text()) == {"bos_token": "<s>"}
    assert not {p.name for p in (tmp_path / "out").iterdir()} & {"modeling_evil.py", "evil.so", "vocab.txt"}
    assert set(result.report["package"]["left_out"]) == {"modeling_evil.py", "evil.so", "vocab.txt"}
    assert len(result.report["package"]["dropped"]) == 5


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"model": {"decoder": {"filename": "../model.onnx"}}}, "names no model in it but"),
        ({"model": {"decoder": {"filename": "gone.onnx"}}}, "names no model in it but"),
        (
            {"model": {"decoder": {"filename": "a.onnx"}, "encoder": {"filename": "b.onnx"}}},
            "names no model in it but",
        ),
        ({"model": {"decoder": {"filename": "a.onnx", "pipeline": []}}}, "that code puts together"),
        ({"model": 3}, "names no model in it"),
        ([], "holds no JSON object"),
    ],
)
def test_a_folder_that_says_no_one_model_is_refused(settings: Any, told: str, tmp_path: Path) -> None:
    (tmp_path / "genai_config.json").write_text(json.dumps(settings))
    with pytest.raises(InputError, match=told):
        package_at(tmp_path)


def test_a_folder_of_anything_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"without genai_config\.json or config\.json"):
        package_at(tmp_path)
    (tmp_path / "config.json").write_text("[" * 100_000)
    with pytest.raises(InputError, match="is not JSON"):
        package_at(tmp_path)
