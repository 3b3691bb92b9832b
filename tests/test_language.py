"""Text for decoders: windows of a file, what a model writes itself, and the loss of a token."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import yaml

from sparsecc import api
from sparsecc.data.language import TextModel, samples_of
from sparsecc.errors import InputError
from sparsecc.loading.normalise import normalise
from sparsecc.report.verdict import verdict
from sparsecc.runtime.session import OrtRunner, open_session
from tests.decoder_models import Decoder
from tests.rule_checks import model_of

WORDS = ["<s>", "the", "cat", "dog", "sat", "ran", "on", "mat", "and", "away"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A decoder with a tokenizer of a few words, and a page of text elsewhere."""
    tokenizers = pytest.importorskip("tokenizers", reason="needs tokenizers: pip install 'sparsecc[text]'")
    made = Decoder(positions=32).folder(tmp_path_factory.mktemp("text") / "model")
    words = tokenizers.models.WordLevel({word: n for n, word in enumerate(WORDS)}, unk_token="<s>")
    tokenizer = tokenizers.Tokenizer(words)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.save(str(made / "tokenizer.json"))
    picked = np.random.default_rng(1).integers(1, len(WORDS), 600)
    (made.parent / "page.txt").write_text(" ".join(WORDS[n] for n in picked))
    return made


def opened(folder: Path) -> tuple[ir.Model, TextModel, OrtRunner]:
    model = normalise(ir.load(folder / "model.onnx"))
    text = TextModel.of(model)
    assert text is not None
    return model, text, open_session(folder / "model.onnx")


def test_windows_of_a_file_begin_as_texts_do(folder: Path) -> None:
    model, text, run = opened(folder)
    page, tokenizer = folder.parent / "page.txt", folder / "tokenizer.json"
    found = samples_of(str(page), model, text, run.run, 0, tokenizer.parent, begin=0)
    windows = [*found.samples.batches, *found.held_out.batches]
    ids = np.concatenate([batch["input_ids"] for batch in windows])
    assert ids.shape == (600 // 31, 32)  # as long as the rotation has room for
    assert (ids[:, 0] == 0).all()
    assert all(batch["past_key_values.0.key"].shape[2] == 0 for batch in windows)
    assert len(found.held_out.batches[0]["input_ids"]) > 0


def test_what_a_model_writes_is_its_own(folder: Path) -> None:
    """The same for the same seed, another for another; and it finds it far likelier than a text of chance."""
    _, text, run = opened(folder)
    first, again, other = (list(islice(text.written(run.run, seed, 1), 16)) for seed in (0, 0, 1))
    ids, same, others = (np.concatenate([f["input_ids"] for f in feeds]) for feeds in (first, again, other))
    np.testing.assert_array_equal(ids, same)
    assert (ids != others).any()
    chance = [text.feeds(np.random.default_rng(2).integers(0, 64, (16, ids.shape[1])))]
    own, tokens = text.loss(first, run.run)
    assert tokens == 16 * (ids.shape[1] - 1)
    assert own < text.loss(chance, run.run)[0] - 0.5


def test_the_loss_is_that_of_the_next_token(folder: Path) -> None:
    _, text, run = opened(folder)
    feeds = text.feeds(np.array([[3, 1, 4, 1, 5]]))
    logits = run.run(feeds)["logits"][0].astype(np.float64)
    shares = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    wanted = -np.log([shares[0, 1], shares[1, 4], shares[2, 1], shares[3, 5]]).mean()
    loss, tokens = text.loss([feeds], run.run)
    assert loss == pytest.approx(wanted, rel=1e-6)
    assert tokens == 4


def test_a_language_model_is_calibrated_on_its_own_text_unasked(folder: Path, tmp_path: Path) -> None:
    result = api.compile(folder, output=tmp_path / "out", ratio=0.1, measure=False, metric="params")
    assert yaml.safe_load((tmp_path / "out" / "recipe.yaml").read_text())["calib"] == "self"
    told = result.report["text"]
    assert told["is_own"]
    assert 0 < told["before"] <= told["after"]
    assert result.report["fidelity"]["data"] == "held-out samples"


@pytest.mark.parametrize(
    ("after", "fidelity", "judged"),
    [
        (2.2, {"quality_db": 3.0, "parts": []}, "usable"),
        (2.35, {"quality_db": 30.0, "parts": []}, "doubtful"),
        (2.6, {"quality_db": 30.0, "parts": []}, "useless"),
        (float("nan"), {"quality_db": 30.0, "parts": []}, "useless"),
    ],
)
def test_language_models_are_judged_by_nats(after: float, fidelity: dict[str, Any], judged: str) -> None:
    """Guessing among 512 words costs 6.24 nats: a tenth of the way there from 2 is 0.42."""
    text = {"before": 2.0, "after": after, "tokens": 400, "words": 512, "is_own": False}
    facts = {**fidelity, "data": "held-out samples", "samples": 9, "agreement": []}
    said = verdict({"text": text, "fidelity": facts, "removed": {"share": 0.3}, "asked": {"ratio": 0.3}})
    assert said.judgement == judged
    assert "nats a token" in said.lost
    assert "dB" not in said.lost


def test_the_next_step_of_a_language_model_is_told_in_nats(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = api.compile(folder, output=out, ratio=0.9, measure=False, metric="params", recover="none")
    text, steps = result.report["text"], result.report["next_steps"]
    assert text["after"] - text["before"] > 0.1 * (np.log(64) - text["before"])
    assert result.report["verdict"]["judgement"] == "useless"
    assert all(text["before"] - 0.01 < step["nats"] for step in steps)
    assert f"({steps[0]['nats']:.3f} nats a token" in result.report["verdict"]["advice"]


def test_only_decoders_write(tmp_path: Path) -> None:
    model = ir.from_proto(model_of("(float[N,8] x, float[8,4] w) => (float[N,4] y) { y = MatMul(x, w) }"))
    with pytest.raises(InputError, match="only a decoder with caches"):
        samples_of("self", model, TextModel.of(model), lambda feeds: {}, 0, tmp_path, None)


def test_a_text_of_a_few_words_is_refused(folder: Path, tmp_path: Path) -> None:
    model, text, run = opened(folder)
    (tmp_path / "t.txt").write_text("the cat")
    with pytest.raises(InputError, match="2 tokens are too few"):
        samples_of(str(tmp_path / "t.txt"), model, text, run.run, 0, folder, None)
