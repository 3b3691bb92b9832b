"""A file that is no model is named for what it seems to be."""

from __future__ import annotations

import pickle
import zipfile
from io import BytesIO
from pathlib import Path

import pytest

from sparsecc.errors import InputError
from sparsecc.loading.models import load_ir
from tests.test_front_door import MODEL, model, refusal


def zipped(*names: str) -> bytes:
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in names:
            archive.writestr(name, b"")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", "empty"),
        (zipped("a.txt"), "zip archive"),
        (zipped("m/data.pkl", "m/constants.pkl"), "TorchScript"),
        (zipped("m/data.pkl", "m/version"), "torch checkpoint"),
        (zipped("m/archive_format"), "torch.export"),
        (b"PK\x03\x04" + bytes(100), "zip archive"),
        (pickle.dumps({"a": 1}), "pickle"),
        (b'{"a": 1}', "JSON"),
        (b"<!DOCTYPE html><html>", "HTML"),
        (b'<?xml version="1.0"?><net/>', "XML"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull"),
        (b"ir_version: 8\ngraph {", "protobuf text"),
        (MODEL.encode(), "ONNX or markup text"),
        (b"\x10\x00\x00\x00\x00\x00\x00\x00" + b'{"__metadata__":{}}', "safetensors"),
        (b"ftrt" + bytes(20), "TensorRT engine"),
        (b"\x1c\x00\x00\x00TFL3", "TensorFlow Lite"),
        (b"\x1c\x00\x00\x00ORTM", "ORT format"),
        (b"GGUF\x03", "GGUF"),
        (b"\x89HDF\r\n\x1a\n", "HDF5"),
        (b"\x1f\x8b\x08", "gzip"),
        (model().SerializeToString()[:300], "damaged"),
        (model().SerializeToString() + b"garbage", "damaged"),
        (b"\x08\x08", "no graph"),
        (bytes(range(256)), "not an ONNX model"),
    ],
)
def test_what_is_no_model_is_named(tmp_path: Path, data: bytes, expected: str) -> None:
    assert expected in refusal(data)
    path = tmp_path / "m\n.onnx"
    path.write_bytes(data)
    with pytest.raises(InputError, match=expected) as caught:
        load_ir(path)
    assert "\n" not in str(caught.value)
