"""Samples and functions in memory: whatever form they have, a compile is the one that files would give; nothing is
pickled, all is read once, and what the user's own code raises comes through."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sparsecc
from sparsecc.data.array_files import read_arrays, write_arrays
from sparsecc.data.files import feeds_from
from sparsecc.data.in_memory import InMemory, Run, Spool
from sparsecc.errors import InputError
from sparsecc.loading.models import load_ir
from sparsecc.worker import asking
from tests.test_layout import ROOT

MODEL = ROOT / "models" / "digits_resnet.onnx"
with np.load(ROOT / "models" / "digits.npz") as data:
    IMAGES = (
        data["calibration_images"][:24].repeat(2, axis=1).repeat(2, axis=2)[:, None].astype(np.float32) / 8
        - 1
    )


class Numbered:
    """A data set as torch has them: it counts its items and gives each by its number, with a label."""

    def __len__(self) -> int:
        return len(IMAGES)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        return IMAGES[index], 3


def in_batches() -> Iterator[np.ndarray]:
    for start in range(0, len(IMAGES), 10):
        yield IMAGES[start : start + 10]


@pytest.fixture
def read(tmp_path: Path) -> Iterator[Callable[[Any], np.ndarray]]:
    """The samples that a worker reads of what a call holds in memory, here in one process."""
    model = load_ir(MODEL)

    def of(value: Any) -> np.ndarray:
        memory = InMemory(tmp_path)
        spec = memory.samples("calib", value)
        asking.listen(lambda question: memory(question, lambda reply: {}))
        return np.concatenate([feeds["image"] for feeds in feeds_from(str(spec), model)])

    yield of
    asking._parent.clear()


@pytest.mark.parametrize(
    "form",
    [
        lambda: IMAGES,
        lambda: {"image": IMAGES, "labels": np.zeros(24)},
        lambda: [{"image": one, "about": {"nested": "record"}} for one in IMAGES],
        lambda: (one for one in IMAGES[:, None]),
        lambda: in_batches,
        Numbered,
    ],
    ids=["array", "mapping", "list of mappings", "generator", "function", "data set"],
)
def test_every_form_gives_what_a_file_gives(
    form: Callable[[], Any], read: Callable[[Any], np.ndarray]
) -> None:
    assert np.array_equal(read(form()), IMAGES)


def test_a_torch_loader_gives_what_a_file_gives(read: Callable[[Any], np.ndarray]) -> None:
    torch = pytest.importorskip("torch")
    pairs = torch.utils.data.TensorDataset(torch.from_numpy(IMAGES), torch.zeros(24))
    assert np.array_equal(read(torch.utils.data.DataLoader(pairs, batch_size=7)), IMAGES)
    assert np.array_equal(read([torch.from_numpy(IMAGES).to(torch.bfloat16)]), IMAGES)


def test_a_compile_is_that_of_a_file(tmp_path: Path) -> None:
    np.save(tmp_path / "samples.npy", IMAGES)
    one, other = (
        sparsecc.compile(MODEL, ratio=0.3, calib=calib, dry_run=True, measure=False).report["layers"]
        for calib in (tmp_path / "samples.npy", (image for image in IMAGES))
    )
    assert one == other


def test_samples_are_read_once_and_no_more_than_are_used(tmp_path: Path) -> None:
    given = []

    def endless() -> Iterator[np.ndarray]:
        while True:
            given.append(1)
            yield IMAGES

    made = sparsecc.compile(
        MODEL, ratio=0.3, calib=endless(), output=tmp_path / "out", evaluate=lambda run: 1.0, measure=False
    )
    assert len(given) <= 512 // len(IMAGES) + 1
    assert made.report["accuracy"] == {"metric": "<lambda>", "before": 1.0, "after": 1.0}


def test_a_function_scores_both_models_from_here(tmp_path: Path) -> None:
    seen: list[np.ndarray] = []

    def mean_answer(run: Run) -> Any:
        outputs = run({"image": IMAGES[:10]})
        seen.append(outputs["logits"])
        return np.float32(outputs["logits"].mean())

    told: list[dict[str, Any]] = []
    made = sparsecc.compile(
        MODEL, ratio=0.4, evaluate=mean_answer, measure=False, output=tmp_path / "out", on_event=told.append
    )
    assert not any("outside the sandbox" in event.get("note", "") for event in told)
    accuracy = made.report["accuracy"]
    assert accuracy["metric"] == "mean_answer"
    assert [accuracy["before"], accuracy["after"]] == [pytest.approx(float(one.mean())) for one in seen]
    assert seen[0].shape == (10, 10)
    assert not np.array_equal(seen[0], seen[1])


def test_what_a_users_code_raises_comes_through(tmp_path: Path, read: Callable[[Any], np.ndarray]) -> None:
    def wrong(run: Run) -> float:
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        sparsecc.compile(MODEL, ratio=0.3, evaluate=wrong, output=tmp_path / "out")

    def broken() -> Iterator[np.ndarray]:
        yield IMAGES
        raise KeyError("column")

    with pytest.raises(KeyError, match="column"):
        read(broken)


def test_what_a_model_refuses_ends_the_function_that_asked(tmp_path: Path) -> None:
    def stubborn(run: Run) -> float:
        with suppress(Exception):
            run({"image": IMAGES[:, :, :3]})
        return 2.0

    with pytest.raises(InputError, match="image"):
        sparsecc.compile(MODEL, ratio=0.3, evaluate=stubborn, measure=False, output=tmp_path / "out")


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ([{"image": object()}], "no values for input 'image'"),
        ([(object(),)], r"calib\[0\] holds object, which is no array"),
        (IMAGES[:, :, :3], r"calib\[0\].npz: input 'image' takes"),
        (lambda: 3, "gives int: yield a dict"),
    ],
)
def test_misuse_is_told_in_one_line(given: Any, told: str, read: Callable[[Any], np.ndarray]) -> None:
    with pytest.raises(InputError, match=told) as caught:
        read(given)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("value", "told"),
    [("good", "returned 'good': it must return a number"), (float("nan"), "returned nan")],
)
def test_a_score_is_a_number(value: Any, told: str, tmp_path: Path) -> None:
    memory = InMemory(tmp_path)
    memory.function(lambda run: value)
    with pytest.raises(InputError, match=told):
        memory({"function": "<lambda>"}, lambda reply: {})


def test_what_is_no_data_is_refused() -> None:
    for calib, told in ((3, "--calib: "), ("memory:calib", "what a call in Python holds")):
        with pytest.raises(InputError, match=told):
            sparsecc.compile(MODEL, ratio=0.3, calib=calib, dry_run=True)  # type: ignore[arg-type]


def test_other_verbs_take_samples_in_memory() -> None:
    alike = sparsecc.compare(MODEL, MODEL, data=IMAGES)
    assert alike["outputs"]["data"] == "samples"
    assert alike["outputs"]["samples"] == 24
    timed = sparsecc.profile(MODEL, data=[IMAGES[:2]])
    assert timed["inputs"] == {"image": [1, 1, 16, 16]}


def test_a_search_reads_samples_once_and_scores_one_at_a_time(tmp_path: Path) -> None:
    given, inside = [], []

    def once() -> Iterator[np.ndarray]:
        for one in IMAGES:
            given.append(1)
            yield one

    def score(run: Run) -> float:
        inside.append(1)
        assert len(inside) == 1
        run({"image": IMAGES[:2]})
        inside.pop()
        return 0.5

    found = sparsecc.search(
        MODEL,
        ratios=(0.2, 0.4),
        quantizes=(None,),
        rounds=0,
        jobs=2,
        calib=once(),
        evaluate=score,
        measure=False,
        output=tmp_path / "f",
    )
    assert len(given) == len(IMAGES)
    assert [point["quality"] for point in found["points"]] == [0.5, 0.5]
    with pytest.raises(InputError, match="cluster have other memories"):
        sparsecc.search(MODEL, cluster="tcp://nowhere:1", calib=IMAGES)


def test_nothing_is_pickled(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            raise AssertionError("pickled")

    memory = InMemory(tmp_path)
    assert memory.samples("calib", [{"x": np.ones(3), "t": Trap()}]) == "memory:calib"
    reply = memory({"samples": "calib", "index": 0}, lambda reply: {})
    assert list(read_arrays(Path(reply["file"]))) == ["x"]
    assert memory({"samples": "calib", "index": 1}, lambda reply: {}) == {}
    hidden = tmp_path / "pickled.npz"
    hidden.write_bytes(pickle.dumps([1]))
    with pytest.raises(InputError, match="not readable as arrays"):
        read_arrays(hidden)


def test_arrays_keep_their_names_and_types(tmp_path: Path) -> None:
    arrays = {"file": np.arange(3), "a/b": np.array(["x", "yy"], dtype=object), "": np.float16(2)[None]}
    write_arrays(tmp_path / "a.npz", arrays)
    found = read_arrays(tmp_path / "a.npz")
    assert {name: array.tolist() for name, array in found.items()} == {
        n: a.tolist() for n, a in arrays.items()
    }
    np.savez_compressed(tmp_path / "b.npz", x=np.zeros(10 << 20, np.uint8))
    with pytest.raises(InputError, match="it is packed"):
        read_arrays(tmp_path / "b.npz")
    (tmp_path / "c.npz").symlink_to(tmp_path / "a.npz")
    with pytest.raises(InputError, match="not readable"):
        read_arrays(tmp_path / "c.npz")


def test_a_type_checker_knows_what_calib_may_be(tmp_path: Path) -> None:
    import mypy.api

    file = tmp_path / "user.py"
    file.write_text(
        "import numpy as np\nimport sparsecc\n"
        "def score(run: object) -> float: return 1.0\n"
        "sparsecc.compile('m.onnx', calib=np.zeros(3), evaluate=score)\n"
        "sparsecc.compile('m.onnx', calib=[{'x': np.zeros(3)}])\n"
        "sparsecc.compile('m.onnx', calib=3)\n"
        "sparsecc.compile('m.onnx', raito=3)\n"
    )
    out, _, code = mypy.api.run(["--strict", "--no-error-summary", str(file)])
    assert code == 1
    lines = [line for line in out.splitlines() if ": error:" in line]
    assert [line.split(":")[1] for line in lines] == ["6", "7"], json.dumps(lines)


# What a worker that is not ours any more may do -------------------------------------------------------


def test_arrays_are_written_over_links_not_through_them(tmp_path: Path) -> None:
    victim, place = tmp_path / "victim", tmp_path / "feeds.npz"
    victim.write_text("precious")
    place.symlink_to(victim)
    write_arrays(place, {"x": np.ones(3)})
    assert victim.read_text() == "precious"
    assert not place.is_symlink()
    assert np.array_equal(read_arrays(place)["x"], np.ones(3))


def test_a_pipe_in_place_of_arrays_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "outputs.npz")
    with pytest.raises(InputError, match="it is no file"):
        read_arrays(tmp_path / "outputs.npz")
    write_arrays(tmp_path / "outputs.npz", {"x": np.ones(3)})
    assert (tmp_path / "outputs.npz").is_file()


def test_names_that_end_like_files_are_other_names(tmp_path: Path) -> None:
    write_arrays(tmp_path / "a.npz", {"x": np.zeros(2), "x.npy": np.ones(2)})
    found = read_arrays(tmp_path / "a.npz")
    assert (found["x"].sum(), found["x.npy"].sum()) == (0, 2)


@pytest.mark.parametrize("index", [None, "x", [1], True, -1, 1, 10**9, 1.0])
def test_samples_are_given_in_turn(index: object, tmp_path: Path) -> None:
    spool = Spool("calib", iter(np.ones((3, 2))), tmp_path)
    with pytest.raises(InputError, match="out of turn"):
        spool.file(index)
    assert spool.file(0) is not None


def test_a_run_that_was_kept_is_refused(tmp_path: Path) -> None:
    kept: list[Any] = []

    def loyal(run: Any) -> float:
        kept.append(run)
        kept[0]({"image": np.zeros((1, 1, 16, 16), np.float32)})
        return 1.0

    with pytest.raises(InputError, match="an earlier call"):
        sparsecc.compile(MODEL, ratio=0.2, evaluate=loyal, measure=False, output=tmp_path / "out")


def test_samples_may_be_made_by_calling_us_while_a_worker_waits_for_them(tmp_path: Path) -> None:
    asked: list[int] = []

    def looked_at() -> Iterator[np.ndarray]:
        asked.append(len(sparsecc.inspect(MODEL)["groups"]))
        yield from in_batches()

    found = sparsecc.search(
        MODEL,
        calib=looked_at,
        ratios=(0.3,),
        quantizes=(None,),
        rounds=0,
        measure=False,
        output=tmp_path / "front",
    )
    assert len(found["points"]) == 1
    assert asked[0] > 0
