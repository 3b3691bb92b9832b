"""Files of samples, slots and ranges that are damaged or absurd: one line that names them, never a fault of ours."""

from __future__ import annotations

import json
import os
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from sparsecc.data.array_files import write_arrays
from sparsecc.data.files import feeds_from
from sparsecc.data.preprocessing import CONFIG, Preprocessing, read_wave
from sparsecc.data.ranges import read_ranges
from sparsecc.data.slot_files import read_slots
from sparsecc.errors import InputError


def model() -> ir.Model:
    shape: list[str | int | None] = ["n", 4]
    first, last = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in "xy")
    node = helper.make_node("Relu", ["x"], ["y"])
    graph = helper.make_graph([node], "g", [first], [last])
    made: ir.Model = ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]))
    return made


def damaged(path: Path) -> None:
    np.savez_compressed(path, x=np.arange(4000, dtype=np.float32))
    whole = bytearray(path.read_bytes())
    whole[200:260] = bytes(60)
    path.write_bytes(whole)


def packed(method: int) -> Callable[[Path], None]:
    """One byte of the member's headers says another way of packing."""

    def write(path: Path) -> None:
        np.savez(path, x=np.ones(4, np.float32))
        whole = bytearray(path.read_bytes())
        whole[8:10] = struct.pack("<H", method)
        at = whole.rindex(b"PK\x01\x02")
        whole[at + 10 : at + 12] = struct.pack("<H", method)
        path.write_bytes(whole)

    return write


def no_array(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("x", b"these are no numbers")


@pytest.mark.parametrize("write", [damaged, packed(14), packed(97), no_array, os.mkfifo])
def test_damaged_arrays(write: Callable[[Path], None], tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    write(path)
    with pytest.raises(InputError, match=r"not readable|no such file|is no file"):
        list(feeds_from(str(path), model()))
    with pytest.raises(InputError, match="not readable"):
        read_slots(path)


def test_names_that_end_like_files(tmp_path: Path) -> None:
    write_arrays(tmp_path / "m.npz", {"x": np.zeros(3), "x.npy": np.ones(3)})
    found = read_slots(tmp_path / "m.npz")
    assert not found["x"].any()
    assert found["x.npy"].all()


@pytest.mark.parametrize(
    "line",
    ['{"x": [[1, 2], [3]]}', '{"x": {"a": 1}}', '{"x": "text"}', '{"x": [1e400, 1, 1, {}]}', '{"path": "many.npy"}',
     '{"path": "pipe.npy"}', '{"path": "none.npy"}', "\udcff"],
)  # fmt: skip
def test_lines_that_hold_no_sample(line: str, tmp_path: Path) -> None:
    np.save(tmp_path / "many.npy", np.ones((3, 4), np.float32))
    os.mkfifo(tmp_path / "pipe.npy")
    (tmp_path / "s.jsonl").write_text(line + "\n", errors="surrogateescape")
    with pytest.raises(InputError, match=r"s\.jsonl:1"):
        list(feeds_from(str(tmp_path / "s.jsonl"), model()))


@pytest.mark.parametrize("number", [2**63 - 1, 2**64 - 1, -1])
def test_slots_that_no_axis_has(number: int, tmp_path: Path) -> None:
    (tmp_path / "s.json").write_text(json.dumps({"w": [number]}))
    with pytest.raises(InputError, match="neither a mask nor numbers"):
        read_slots(tmp_path / "s.json")


@pytest.mark.parametrize(
    "data",
    [{"activation_encodings": 5}, {"activation_encodings": None}, {"x": [0, 10**400]},
     {"activation_encodings": [{"name": "x", "bw": 10**11, "scale": [1.0], "offset": [0]}]}],
)  # fmt: skip
def test_ranges_that_are_none(data: object, tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text(json.dumps(data))
    with pytest.raises(InputError, match="--ranges"):
        read_ranges(tmp_path / "r.json")


@pytest.mark.parametrize(
    "told",
    [{"resample": 99, "size": 8}, {"size": {"shortest_edge": 60000}}, {"size": {"height": 10**12, "width": 1}},
     {"do_center_crop": True, "crop_size": -3}, {"image_mean": [0.5], "image_std": [1, 1, 1]},
     {"rescale_factor": 1e999}, {"sampling_rate": 0}, {"size": 10**400}],
)  # fmt: skip
def test_preprocessors_of_sizes_that_nothing_has(told: object, tmp_path: Path) -> None:
    (tmp_path / CONFIG).write_text(json.dumps(told))
    with pytest.raises(InputError, match="no preprocessor's configuration"):
        Preprocessing.beside(tmp_path)


def test_waves_of_forty_bits(tmp_path: Path) -> None:
    header = struct.pack(
        "<4sI4s4sIHHIIHH4sI", b"RIFF", 46, b"WAVE", b"fmt ", 16, 1, 1, 8000, 40000, 5, 40, b"data", 10
    )
    (tmp_path / "w.wav").write_bytes(header + bytes(10))
    with pytest.raises(InputError, match="40 bits"):
        read_wave(tmp_path / "w.wav")
