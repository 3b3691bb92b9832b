"""Ranges that other tools found: each form is read, and int8 covers what they say."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

import sparsecc
from sparsecc.data.ranges import read_ranges
from sparsecc.errors import InputError
from tests.quantize_models import convolutions, feeds_for


def _cache(ranges: dict[str, float]) -> str:
    lines = [f"{name}: {struct.pack('>f', top / 127).hex()}" for name, top in ranges.items()]
    return "\n".join(["TRT-8601-EntropyCalibration2", *lines, ""])


FORMS: dict[str, Any] = {
    "cache": _cache({"image": 4.0, "(Unnamed Layer* 3) [x]: y": 2.0}),
    "a.encodings": {
        "version": "0.6.1",
        "activation_encodings": {"image": [{"bitwidth": 8, "min": -4.0, "max": 4.0, "scale": 0.1, "offset": -40}]},
        "param_encodings": {"w": [{"min": -1, "max": 1}, {"min": -2, "max": 2}]},
    },
    "b.json": {
        "version": "1.0.0",
        "activation_encodings": [{"name": "image", "bw": 8, "scale": [8 / 255], "offset": [-127.5]}],
    },
    "c.json": {"image": [-4, 4.0]},
}  # fmt: skip


def _write(folder: Path, name: str, content: Any) -> Path:
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


@pytest.mark.parametrize("name", list(FORMS))
def test_each_form_is_read(name: str, tmp_path: Path) -> None:
    assert read_ranges(_write(tmp_path, name, FORMS[name]))["image"] == pytest.approx((-4.0, 4.0))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("TRT-8601-EntropyCalibration2\nimage: 12", "line 2 of f is no"),
        ("TRT-8601-MinMaxCalibration\nimage: 7f800000", "has the range -inf to inf"),
        ({"image": [3, 1]}, "'image' has the range 3.0 to 1.0"),
        ({"activation_encodings": {"image": [{"max": 1}]}}, "'min' is missing"),
        ({"activation_encodings": [{"name": "image"}]}, "'scale' is missing"),
        ({"image": [1, 2, 3]}, "a single range of 'image' is missing"),
        ("no json", "is not JSON"),
        ("[]", "holds no JSON object"),
    ],
)
def test_what_is_no_range_is_refused_in_a_line(content: Any, words: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        read_ranges(_write(tmp_path, "f", content))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.fixture
def net(tmp_path: Path) -> Path:
    ir.save(convolutions(), tmp_path / "m.onnx")
    np.savez(tmp_path / "c.npz", **feeds_for(convolutions(), batch=8))  # type: ignore[arg-type]
    return tmp_path / "m.onnx"


def test_given_ranges_stand_above_those_of_samples_and_in_the_bundle(net: Path, tmp_path: Path) -> None:
    ranges = _write(tmp_path, "c.json", {"image": [-9.0, 9.0], "other": [0, 1]})
    made = sparsecc.compile(
        net, quantize="int8!", ranges=ranges, calib=tmp_path / "c.npz", output=tmp_path / "o", measure=False
    )
    of = made.plan["quantization"]
    assert (of["image"]["low"], of["image"]["high"], of["image"]["source"]) == (-9.0, 9.0, "given")
    assert {
        entry["source"] for name, entry in of.items() if entry["role"] == "activation" and name != "image"
    } == {"minmax"}
    checked = sparsecc.verify(tmp_path / "o", model=net, reproduce=True, calib=tmp_path / "c.npz")
    assert {row["check"]: row["ok"] for row in checked["checks"]}["reproduce"]


def test_ranges_of_all_values_need_no_samples(net: Path, tmp_path: Path) -> None:
    first = sparsecc.compile(
        net, quantize="int8!", calib=tmp_path / "c.npz", output=tmp_path / "o", measure=False
    )
    found = {
        name: [entry["low"], entry["high"]]
        for name, entry in first.plan["quantization"].items()
        if entry["role"] == "activation"
    }
    again = sparsecc.compile(
        net, quantize="int8!", ranges=_write(tmp_path, "r.json", found), output=tmp_path / "p", measure=False
    )
    assert (tmp_path / "p" / "model.onnx").read_bytes() == (tmp_path / "o" / "model.onnx").read_bytes()
    assert again.plan["quantization"].keys() == first.plan["quantization"].keys()


@pytest.mark.parametrize(
    ("ranges", "options", "words"),
    [
        ({"image": [-9, 9]}, {}, "--ranges says nothing of"),
        ({"none": [-9, 9]}, {}, "names no value that becomes integers"),
        ({"image": [-9, 9]}, {"max_drop": "0.1"}, "int8 with max_drop needs calibration data"),
    ],
)
def test_ranges_that_do_not_do_are_refused(
    ranges: dict[str, list[int]], options: dict[str, str], words: str, net: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=words):
        sparsecc.compile(
            net, quantize="int8", quantize_options=options, ranges=_write(tmp_path, "r.json", ranges),
            output=tmp_path / "o", measure=False,
        )  # fmt: skip
