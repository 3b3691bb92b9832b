"""Inputs: random ones that let models run, and the user's files with every misuse told in one line."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from sparsecc.data.files import feeds_from as from_files
from sparsecc.data.random_inputs import feeds_from, random_feeds
from sparsecc.data.samples import CalibrationSet
from sparsecc.errors import InputError
from sparsecc.runtime.session import open_session
from sparsecc.shapes.dynamic_dims import candidate_dims

SHARED = Path(os.environ.get("SPARSECC_SHARED", Path(__file__).parents[2] / "shared"))


def model_of(
    inputs: str, body: str = "y = Identity (x)", output: str = "float[N] y", weights: str = ""
) -> ir.Model:
    head = '<ir_version: 9, opset_import: ["" : 17]>'
    return ir.from_onnx_text(f"{head}\nm ({inputs}) => ({output})\n{weights}\n{{\n{body}\n}}")


EMBED = "e = Gather <axis=0> (table, i)\ny = Identity (e)"
TABLE = "<float[5,1] table = {0,1,2,3,4}>"


@pytest.mark.parametrize(
    ("between", "index"),
    [
        ("i = Identity (x)", "int64"),
        ("i = Cast <to=7> (x)", "int32"),
        ("i = Cast <to=7> (x)", "float"),
        ("f = Flatten (x)\ni = Cast <to=7> (f)", "uint8"),
        ("c = Clip (x)\nt = Transpose (c)\ni = Identity (t)", "int64"),
    ],
)
def test_what_selects_rows_of_a_table_stays_inside_it(between: str, index: str) -> None:
    model = model_of(f"{index}[4,200] x", f"{between}\n{EMBED}", "float[?,?,?] y", TABLE)
    values = random_feeds(model, seed=0)["x"]
    assert set(np.unique(values).tolist()) == {0, 1, 2, 3, 4}


def test_the_same_seed_gives_the_same_inputs_and_another_others() -> None:
    model = model_of("float[3,4] x", output="float[3,4] y")
    one, same, other = (random_feeds(model, seed=seed)["x"] for seed in (1, 1, 2))
    assert (one == same).all()
    assert (one != other).any()
    assert one.dtype == np.float32


@pytest.mark.parametrize(
    ("declared", "dtype"),
    [
        ("float16", np.float16),
        ("bfloat16", ml_dtypes.bfloat16),
        ("double", np.float64),
        ("uint8", np.uint8),
        ("int8", np.int8),
        ("int32", np.int32),
        ("bool", np.bool_),
        ("string", np.object_),
    ],
)
def test_every_type_is_drawn_as_itself(declared: str, dtype: type) -> None:
    values = random_feeds(model_of(f"{declared}[2,50] x", output=f"{declared}[2,50] y"), seed=0)["x"]
    assert values.dtype == dtype
    assert values.shape == (2, 50)


def test_bytes_use_their_whole_range() -> None:
    assert random_feeds(model_of("uint8[999] x", output="uint8[999] y"), seed=0)["x"].max() > 240


def test_masks_are_ones_with_some_zeros_but_no_empty_row() -> None:
    model = model_of("int64[4,16] attention_mask", "y = Cast <to=1> (attention_mask)", "float[4,16] y")
    mask = random_feeds(model, seed=0)["attention_mask"]
    assert set(np.unique(mask)) == {0, 1}
    assert mask.any(axis=1).all()


def test_a_scalar_that_is_compared_with_a_constant_is_that_constant() -> None:
    model = model_of("int64 sr", "y = Equal (sr, c)", "bool y", "<int64 c = {16000}>")
    assert random_feeds(model, seed=0)["sr"] == 16000


def test_the_same_name_is_the_same_size_and_sums_of_names_are_worked_out() -> None:
    model = ir.from_onnx_text(
        '<ir_version: 9, opset_import: ["" : 17]>\n'
        "m (float[B,T] a, float[B,P] b) => (float[B,T] y) { y = Identity (a) }"
    )
    model.graph.inputs[1].shape = ir.Shape(["B", "P + T"])
    feeds = random_feeds(model, seed=0, dynamic={"B": 3, "T": 5, "P": 4})
    assert (feeds["a"].shape, feeds["b"].shape) == ((3, 5), (3, 9))


def test_given_sizes_reach_other_inputs_of_the_same_name() -> None:
    model = model_of("float[B,T] a, float[B] b", "y = Identity (b)")
    feeds = random_feeds(model, seed=0, sizes={"a": [7, 2]})
    assert (feeds["a"].shape, feeds["b"].shape) == ((7, 2), (7,))


def test_inputs_that_are_initializers_are_not_fed() -> None:
    model = model_of("float[2] x, float[2] w", "y = Add (x, w)", weights="<float[2] w = {1,2}>")
    assert list(random_feeds(model, seed=0)) == ["x"]


@pytest.mark.parametrize(
    ("sizes", "told"),
    [({"z": [1]}, "no input is called 'z'"), ({"x": [2]}, "declared as"), ({"x": [2, 4]}, "declared as")],
)
def test_sizes_that_do_not_fit_are_refused(sizes: dict[str, list[int]], told: str) -> None:
    with pytest.raises(InputError, match=told):
        random_feeds(model_of("float[N,3] x"), seed=0, sizes=sizes)


def test_dimensions_written_as_minus_one_are_dynamic() -> None:
    model = model_of("float[2,3] x")
    model.graph.inputs[0].shape = ir.Shape([-1, 3])
    assert random_feeds(model, seed=0)["x"].shape == (2, 3)


def test_candidates_offer_batches_sides_and_lengths() -> None:
    images = list(candidate_dims(model_of("float[N,3,H,W] x")))
    assert images[0] == {"N": 2, "H": 32, "W": 32}
    assert {"N": 1, "H": 224, "W": 224} in images
    assert list(candidate_dims(model_of("float[1,3] x"))) == [{}]


MODELS = sorted((SHARED / "materials").glob("*/*.onnx")) if SHARED.is_dir() else []
PARTS = ["cifar10", "vad", "kws", "ocr", "lm"]


@pytest.mark.skipif(not MODELS, reason="needs the shared models: set SPARSECC_SHARED")
@pytest.mark.parametrize("part", PARTS)
def test_real_models_run_on_random_inputs(part: str) -> None:
    for path in (path for path in MODELS if path.parent.name == part):
        model, runner = ir.load(path), open_session(path)
        for dims in candidate_dims(model):
            try:
                outputs = runner.run(random_feeds(model, seed=0, dynamic=dims))
            except InputError:
                continue
            assert outputs
            break
        else:
            pytest.fail(f"{path.name} does not run")


def images_model(shape: str = "N,3,8,6", dtype: str = "float") -> ir.Model:
    return model_of(f"{dtype}[{shape}] x", output=f"{dtype}[{shape}] y")


def test_an_npz_is_cut_into_samples(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", a=np.arange(12, dtype=np.float32).reshape(6, 2), b=np.array([7], np.float32))
    model = model_of("float[2,2] a, float[1] b", "y = Identity (b)")
    samples = list(feeds_from(str(tmp_path / "d.npz"), model))
    assert [sample["a"].tolist() for sample in samples][2] == [[8, 9], [10, 11]]
    assert [sample["b"].tolist() for sample in samples] == [[7], [7], [7]]


def test_an_npy_is_the_only_input_and_floats_are_converted(tmp_path: Path) -> None:
    np.save(tmp_path / "d.npy", np.ones((3, 3, 8, 6), np.float64))
    samples = list(feeds_from(str(tmp_path / "d.npy"), images_model()))
    assert [(s["x"].shape, s["x"].dtype.name) for s in samples] == [((1, 3, 8, 6), "float32")] * 3


@pytest.mark.parametrize(
    ("shape", "dtype", "expected"),
    [
        ("N,3,8,6", "float", (1, 3, 8, 6)),
        ("1,8,6,3", "uint8", (1, 8, 6, 3)),
        ("N,1,H,W", "float", (1, 1, 4, 4)),
    ],
)
def test_a_folder_of_images_fits_the_input(
    tmp_path: Path, shape: str, dtype: str, expected: tuple[int, ...]
) -> None:
    image = pytest.importorskip("PIL.Image")
    for name, level in (("b", 255), ("a", 0)):
        image.fromarray(np.full((4, 4, 3), level, np.uint8)).save(tmp_path / f"{name}.png")
    black, white = (sample["x"] for sample in feeds_from(str(tmp_path), images_model(shape, dtype)))
    assert black.shape == white.shape == expected
    assert (black == 0).all()
    assert (white == (1 if dtype == "float" else 255)).all()


@pytest.mark.parametrize("item", ["{'x': a}", "(a, 3)", "a"])
def test_a_function_yields_samples(tmp_path: Path, item: str) -> None:
    code = "import numpy as np\ndef data():\n    a = np.ones((1, 2), np.float32)\n"
    code += f"    yield {item}\n" * 2
    (tmp_path / "mine.py").write_text(code)
    samples = list(feeds_from(f"{tmp_path / 'mine.py'}:data", model_of("float[N,2] x")))
    assert [sample["x"].shape for sample in samples] == [(1, 2), (1, 2)]


def _save(folder: Path, **arrays: np.ndarray) -> str:
    np.savez(folder / "d.npz", **arrays)  # type: ignore[arg-type]
    return str(folder / "d.npz")


def _write(folder: Path, name: str, content: bytes) -> str:
    (folder / name).write_bytes(content)
    return str(folder / name)


ONE = np.ones((1, 2), np.float32)
MISUSES: list[tuple[str, Callable[[Path], str]]] = [
    ("no such file or folder", lambda d: str(d / "none.npz")),
    ("no .npy, .npz, .wav or image files", lambda d: str(d)),
    ("no values for input 'b': it holds a", lambda d: _save(d, a=ONE, c=ONE)),
    ("takes Nx2, not 1x3", lambda d: _save(d, a=np.ones((1, 3), np.float32), b=ONE)),
    ("takes float, not int64", lambda d: _save(d, a=np.ones((1, 2), np.int64), b=ONE)),
    ("holds NaN", lambda d: _save(d, a=np.full((1, 2), np.nan, np.float32), b=ONE)),
    ("another input 3", lambda d: _save(d, a=np.ones((2, 2), np.float32), b=np.ones((3, 2), np.float32))),
    ("not readable as a numpy file", lambda d: _write(d, "d.npz", b"text")),
    ("not readable as a numpy file", lambda d: _write(d, "d.npy", b"")),
    ("the model has 2 inputs", lambda d: _write(d, "d.png", b"")),
    ("cannot read '.csv' files", lambda d: _write(d, "d.csv", b"1,2")),
    ("has no function 'data'", lambda d: _write(d, "d.py", b"x = 1") + ":data"),
    ("cannot be imported", lambda d: _write(d, "d.py", b"def") + ":data"),
    ("nothing to iterate", lambda d: _write(d, "d.py", b"def data(): return 1") + ":data"),
    ("yields 1 arrays, the model has 2", lambda d: _write(d, "d.py", b"def data(): yield (1,)") + ":data"),
]


@pytest.mark.parametrize(("told", "prepare"), MISUSES)
def test_every_misuse_is_one_line(tmp_path: Path, told: str, prepare: Callable[[Path], str]) -> None:
    model = model_of("float[N,2] a, float[N,2] b", "y = Identity (a)")
    spec = prepare(tmp_path)
    with pytest.raises(InputError) as caught:
        list(feeds_from(spec, model))
    assert told in str(caught.value).replace("N,2", "Nx2")
    assert "\n" not in str(caught.value)


def test_pickles_in_numpy_files_are_not_opened(tmp_path: Path) -> None:
    np.save(tmp_path / "d.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match="not readable"):
        list(feeds_from(str(tmp_path / "d.npy"), model_of("float[N,2] x")))


def test_an_image_that_is_none_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("PIL")
    (tmp_path / "a.png").write_bytes(b"no image")
    with pytest.raises(InputError, match="not readable as an image"):
        list(feeds_from(str(tmp_path), images_model()))


@pytest.mark.parametrize(
    ("declared", "stored", "shape"),
    [
        ("float[16] x", (5, 16), (16,)),
        ("float[samples] x", (5, 40), (40,)),
        ("float x", (5,), ()),
        ("float[n] x", (5,), (1,)),
        ("float[16] x", (80,), (16,)),
    ],
)
def test_rows_are_the_samples_of_inputs_of_one_axis(
    declared: str, stored: tuple[int, ...], shape: tuple[int, ...], tmp_path: Path
) -> None:
    array = np.random.default_rng(0).standard_normal(stored).astype(np.float32)
    np.savez(tmp_path / "d.npz", x=array)
    model = model_of(declared)
    found = [feeds["x"] for feeds in from_files(str(tmp_path / "d.npz"), model)]
    assert [one.shape for one in found] == [shape] * 5
    np.testing.assert_array_equal(np.concatenate([one.reshape(-1) for one in found]), array.reshape(-1))
    given = CalibrationSet(str(tmp_path / "d.npz"), model)
    assert [batch["x"].shape for batch in given.batches(9)] == [shape] * 4
    assert given.held_out.number == 1
