"""Fewer words: scores of those that stay are the same, texts are cut as before, and the tokenizer follows."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from sparsecc import api
from sparsecc.data.vocabulary import settings_with_words, with_words, words_kept
from sparsecc.errors import InputError
from sparsecc.graph.vocabulary import vocabulary_of
from sparsecc.runtime.session import open_session
from tests.decoder_models import Decoder
from tests.rule_checks import loaded, model_of, run

tokenizers = pytest.importorskip("tokenizers", reason="needs tokenizers: pip install 'sparsecc[text]'")

TEXT = "the old lighthouse keeper lit the lamp, and the sea kept its own time. Ödön schläft."
CORPUS = [
    "a ship came in from the sea, old and slow, and the keeper saw its lamp",
    "time and the tide wait for no keeper; the lighthouse waits for both of them",
    "grün ist die Heide, the heath is green, and Ödön sleeps under a tree",
] * 3


def bpe(**options: Any) -> Any:
    made = tokenizers.Tokenizer(tokenizers.models.BPE(**options))
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    letters = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=420, special_tokens=["<s>", "</s>"], initial_alphabet=letters
    )
    made.train_from_iterator(CORPUS, trainer)
    return made


def unigram() -> Any:
    made = tokenizers.Tokenizer(tokenizers.models.Unigram())
    made.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    trainer = tokenizers.trainers.UnigramTrainer(
        vocab_size=120, special_tokens=["<s>", "<unk>"], unk_token="<unk>"
    )
    made.train_from_iterator(CORPUS, trainer)
    return made


def wordpiece() -> Any:
    made = tokenizers.Tokenizer(tokenizers.models.WordPiece(unk_token="[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    trainer = tokenizers.trainers.WordPieceTrainer(
        vocab_size=150, special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    )
    made.train_from_iterator(CORPUS, trainer)
    ends = [("[CLS]", made.token_to_id("[CLS]")), ("[SEP]", made.token_to_id("[SEP]"))]
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=ends
    )
    return made


@pytest.fixture(params=[bpe, unigram, wordpiece])
def tokenizer(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / "tokenizer.json"
    request.param().save(str(path))
    return path


def test_a_text_is_cut_into_the_same_words(tokenizer: Path, tmp_path: Path) -> None:
    before = tokenizers.Tokenizer.from_file(str(tokenizer))
    source = tmp_path / "text.txt"
    source.write_text(TEXT + "\n" + TEXT[10:40], encoding="utf-8")
    kept = words_kept(source, tokenizer, before.get_vocab_size())
    assert len(kept) < before.get_vocab_size()
    after = tokenizers.Tokenizer.from_str(json.dumps(with_words(tokenizer, kept)))
    assert after.get_vocab_size() == len(kept)
    for line in (TEXT, TEXT[10:40]):
        old, new = before.encode(line), after.encode(line)
        assert kept[new.ids].tolist() == old.ids
        assert new.tokens == old.tokens
        assert after.decode(new.ids) == before.decode(old.ids)


def test_any_text_stays_readable_where_words_are_made_of_bytes(tmp_path: Path) -> None:
    path, source = tmp_path / "tokenizer.json", tmp_path / "text.txt"
    bpe().save(str(path))
    source.write_text("the sea")
    kept = words_kept(source, path, 420)
    after = tokenizers.Tokenizer.from_str(json.dumps(with_words(path, kept)))
    assert after.decode(after.encode("наш Ödön, 海").ids) == "наш Ödön, 海"


def test_configurations_have_the_new_numbers() -> None:
    settings = {
        "model": {"bos_token_id": 5, "eos_token_id": [5, 7, 9], "pad_token_id": 8, "vocab_size": 10, "n": 7},
        "added_tokens_decoder": {"5": {"content": "<s>"}, "8": {"content": "x"}},
    }
    assert settings_with_words(settings, np.array([0, 5, 7])) == {
        "model": {"bos_token_id": 1, "eos_token_id": [1, 2], "pad_token_id": None, "vocab_size": 3, "n": 7},
        "added_tokens_decoder": {"1": {"content": "<s>"}},
    }


def spread(words: int) -> list[int]:
    return sorted({1, 2, 9, 17, 33, *range(40, words, 11)})


def test_a_package_with_a_tenth_of_its_words(tmp_path: Path) -> None:
    """Scores of 230 of 2,500 words are bit by bit those of the whole, and the model is not half as large."""
    folder = Decoder(words=2500, hidden=48, layers=1).folder(tmp_path / "dense")
    source = tmp_path / "words.json"
    source.write_text(json.dumps(spread(2500)))
    options: dict[str, Any] = {"ratio": 0, "calib": "none", "measure": False}
    made = api.compile(folder, output=tmp_path / "out", vocabulary=source, **options)
    kept = np.array(spread(2500))
    assert made.report["vocabulary"]["exact"]
    assert (made.report["vocabulary"]["before"], made.report["vocabulary"]["after"]) == (2500, len(kept))
    config = json.loads((tmp_path / "out" / "genai_config.json").read_text())["model"]
    assert (config["vocab_size"], config["bos_token_id"], config["eos_token_id"]) == (len(kept), 0, None)
    before, after = (open_session(path / "model.onnx") for path in (folder, tmp_path / "out"))
    ids = np.array([[3, 0, 20, 100]])
    feeds = {f"past_key_values.0.{part}": np.zeros((1, 4, 0, 16), np.float32) for part in ("key", "value")}
    feeds |= {"attention_mask": np.ones((1, 4), np.int64)}
    wanted = before.run({**feeds, "input_ids": kept[ids]})
    found = after.run({**feeds, "input_ids": ids})
    assert np.array_equal(found["logits"], wanted["logits"][..., kept])
    assert np.array_equal(found["present.0.key"], wanted["present.0.key"])
    sizes = [(path / "model.onnx").stat().st_size for path in (folder, tmp_path / "out")]
    assert sizes[1] < 0.5 * sizes[0]
    told = api.verify(tmp_path / "out", model=folder, reproduce=True)
    checks = {c["check"]: c["status"] for c in told["checks"]}
    assert {checks[name] for name in ("original", "numerics", "reproduce")} == {"ok"}


def test_words_and_heads_go_together(tmp_path: Path) -> None:
    folder = Decoder(words=300).folder(tmp_path / "dense")
    source = tmp_path / "words.json"
    source.write_text(json.dumps(spread(300)))
    made = api.compile(
        folder,
        output=tmp_path / "out",
        vocabulary=source,
        ratio=0.3,
        metric="params",
        calib="self",
        measure=False,
    )
    assert made.report["verification"]["status"] == "proved"
    assert made.report["removed"]["share"] > 0.25
    shapes = {v.name: v.shape for v in ir.load(tmp_path / "out" / "model.onnx").graph.outputs}
    assert list(shapes["logits"] or ())[-1] == len(spread(300))


ENCODER = """
(int64[batch, length] input_ids) => (float[batch, width] y)
<float[40, 6] words = {WORDS}, int64[1] pad = {3}, int64[1] axis = {1}, int64[1] last = {2}>
{
    looked = Gather (words, input_ids)
    is_pad = Equal (input_ids, pad)
    is_word = Not (is_pad)
    mask = Cast <to = 1> (is_word)
    column = Unsqueeze (mask, last)
    seen = Mul (looked, column)
    y = ReduceSum <keepdims = 0> (seen, axis)
}
"""


def encoder() -> onnx.ModelProto:
    numbers = np.random.default_rng(0).standard_normal(240)
    return model_of(ENCODER.replace("WORDS", ", ".join(f"{n:.4f}" for n in numbers)))


def test_what_words_are_compared_with_follows() -> None:
    """An encoder without scores leaves out the number 3; so it does where the words are numbered anew."""
    kept = np.array([1, 3, 4, 20, 39])
    model = loaded(encoder())
    vocabulary_of(model).keep(kept)
    ids = np.array([[0, 1, 1, 4], [2, 3, 1, 0]])
    wanted = run(loaded(encoder()), {"input_ids": kept[ids]})
    found = run(model, {"input_ids": ids})
    np.testing.assert_array_equal(found[0], wanted[0])


def test_words_that_are_counted_with_stay(tmp_path: Path) -> None:
    text = ENCODER.replace("WORDS", ", ".join(["0"] * 240)).replace(
        "Equal (input_ids, pad)", "Greater (input_ids, pad)"
    )
    with pytest.raises(InputError, match="too: leave it out"):
        vocabulary_of(loaded(model_of(text)))


@pytest.mark.parametrize(
    ("words", "options", "reason"),
    [
        ("[1, 900]", {}, "has 64 words, and none is 900"),
        ("[1]", {}, "are no vocabulary"),
        ('{"a": 1}', {}, "give a list of numbers"),
        ("[1, 2]", {"calib": "samples.npz"}, "--calib would hand"),
        ("[1, 2]", {"evaluate": "score.py:function"}, "--eval would hand"),
    ],
)
def test_what_cannot_be_is_said(words: str, options: dict[str, Any], reason: str, tmp_path: Path) -> None:
    folder = Decoder(layers=1).folder(tmp_path / "dense")
    (tmp_path / "words.json").write_text(words)
    (tmp_path / "score.py").write_text("def function(run):\n    return 1.0\n")
    np.savez(tmp_path / "samples.npz", input_ids=np.ones((2, 4), np.int64))
    options = {name: f"{tmp_path}/{value}" for name, value in options.items()}
    with pytest.raises(InputError, match=reason):
        api.compile(
            folder,
            output=tmp_path / "out",
            vocabulary=tmp_path / "words.json",
            ratio=0,
            measure=False,
            **{"calib": "none", **options},
        )
    assert not (tmp_path / "out").exists()


HEAD = """
(int64[batch, length] input_ids) => ({outputs})
<float[40, {width}] words = {{{table}}}, float[{width}, 40] head = {{{table}}},
 float half = {{0.5}}, int64[1] three = {{3}}>
{{
    looked = Gather (words, input_ids)
    scores = MatMul (looked, head)
    {body}
}}
"""


def scored(body: str, outputs: str, width: int = 6) -> ir.Model:
    table = ", ".join(f"{n:.4f}" for n in np.random.default_rng(1).standard_normal(40 * width))
    return loaded(model_of(HEAD.format(body=body, outputs=outputs, width=width, table=table)))


def test_two_outputs_out_of_one_head() -> None:
    kept, ids = np.array([1, 3, 4, 20, 39]), np.array([[0, 4, 2]])
    made = [
        scored("half_of = Mul (scores, half)", "float[b, l, 40] scores, float[b, l, 40] half_of")
        for _ in "ab"
    ]
    vocabulary_of(made[1]).keep(kept)
    wanted = run(made[0], {"input_ids": kept[ids]})
    for before, after in zip(wanted, run(made[1], {"input_ids": ids}), strict=True):
        np.testing.assert_array_equal(after, before[..., kept])


@pytest.mark.parametrize(
    ("body", "outputs", "width", "told"),
    [
        ("best = ArgMax <axis = -1> (scores)", "int64[b, l, 1] best", 6, "its scores are no output"),
        ("top, places = TopK (scores, three)", "float[b, l, 3] top, int64[b, l, 3] places", 6, "no output"),
        ("y = Relu (scores)", "float[b, l, 40] y", 40, "as many words as numbers"),
    ],
)
def test_words_that_the_model_chooses_stay(body: str, outputs: str, width: int, told: str) -> None:
    with pytest.raises(InputError, match=told):
        vocabulary_of(scored(body, outputs, width))


def letters(path: Path, *, shortened: bool = False) -> Path:
    names = ["<unk>", *"abcdefgh \n"]
    made = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({name: n for n, name in enumerate(names)}, unk_token="<unk>")
    )
    made.pre_tokenizer = tokenizers.pre_tokenizers.Split(tokenizers.Regex(r"[\s\S]"), "isolated")
    if shortened:
        made.enable_truncation(2)
    made.save(str(path))
    return path


def test_the_whole_text_is_kept_with_its_line_ends(tmp_path: Path) -> None:
    source = tmp_path / "text.txt"
    source.write_text("ab\ncd\n")
    kept = words_kept(source, letters(tmp_path / "tokenizer.json", shortened=True), 11)
    assert kept.tolist() == [0, 1, 2, 3, 4, 10]


def test_words_of_the_template_are_in_every_list(tmp_path: Path) -> None:
    path, source = tmp_path / "tokenizer.json", tmp_path / "words.json"
    made = wordpiece()
    made.save(str(path))
    source.write_text("[20, 21]")
    assert {made.token_to_id("[CLS]"), made.token_to_id("[SEP]"), 20, 21} <= {*words_kept(source, path, 60)}


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"model": {"type": "BPE", "vocab": 3}}', "[" * 5000])
def test_a_damaged_tokenizer_is_refused(text: str, tmp_path: Path) -> None:
    path, source = tmp_path / "tokenizer.json", tmp_path / "words.json"
    path.write_text(text)
    source.write_text("[1, 2, 3]")
    with pytest.raises(InputError, match="tokenizers cannot use it"):
        words_kept(source, path, 60)


def test_pipes_are_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.txt")
    with pytest.raises(InputError, match="not a plain file"):
        words_kept(tmp_path / "pipe.txt", letters(tmp_path / "tokenizer.json"), 11)


def test_odd_configurations_hold_no_word_that_went() -> None:
    settings = {
        "forced_decoder_ids": [[1, 5], [2, 8]],
        "bad_words_ids": [[5, 7], [8]],
        "pad_token_id": {},
        "eos_token_id": [[1], 7],
        "added_tokens_decoder": {"²": 1},
    }
    assert settings_with_words(settings, np.array([0, 5, 7])) == {
        "forced_decoder_ids": [[1, 1]],
        "bad_words_ids": [[1, 2]],
        "pad_token_id": None,
        "eos_token_id": [2],
        "added_tokens_decoder": {},
    }
