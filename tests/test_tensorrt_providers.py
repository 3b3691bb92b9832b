"""ONNX Runtime's CUDA and TensorRT providers: their settings, and one line where they are not."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from sparsecc.backends.ort.gpu import (
    CPU,
    OnnxRuntimeCuda,
    OnnxRuntimeTensorrt,
    checked,
    node_times,
    read_settings,
    zeros_for,
)
from sparsecc.errors import InputError, UnavailableError
from tests.tensorrt_graphs import conv_residual, dynamic


def _ignore(what: str, share: float) -> None:
    del what, share


class OnCpu(OnnxRuntimeCuda):
    """The same code over the provider that every machine has."""

    provider = CPU

    def provider_options(self, settings: object) -> dict[str, str]:
        return {}

    def _require(self) -> None:
        return


@pytest.mark.parametrize("backend", [OnnxRuntimeCuda(), OnnxRuntimeTensorrt()])
def test_missing_providers_are_said(backend: OnnxRuntimeCuda, tmp_path: Path) -> None:
    if backend.availability().ok:
        pytest.skip("the provider works here")
    with pytest.raises(UnavailableError, match=backend.name) as caught:
        backend.build(ir.from_proto(conv_residual()), tmp_path, {}, _ignore)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alow_fallback": True}, "unknown option 'alow_fallback': options are allow_fallback"),
        ({"tf32": 1}, "'tf32' must be true or false"),
        ({"workspace": True}, "'workspace' must be a number of bytes"),
    ],
)
def test_wrong_options(options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        checked(options)


def test_fallback_is_refused_unless_asked(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    refused = OnnxRuntimeCuda().session_entries(path, checked({}))
    assert refused == {"session.disable_cpu_ep_fallback": "1"}
    assert OnnxRuntimeCuda().session_entries(path, checked({"allow_fallback": True})) == {}
    wanted = OnnxRuntimeTensorrt().session_entries(path, checked({"context_model": True}))
    assert wanted["ep.context_enable"] == "1"


def test_disabled_fallback_is_an_error_of_the_runtime(tmp_path: Path) -> None:
    """The entry does what we rely on: a session that would need the CPU provider is not made."""
    onnx.save(conv_residual(), tmp_path / "model.onnx")
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    with pytest.raises(Exception, match="fallback") as caught:
        ort.InferenceSession(str(tmp_path / "model.onnx"), options, providers=[CPU])
    assert "disable" in str(caught.value) or "fallback" in str(caught.value)


def test_tensorrt_caches_are_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    options = OnnxRuntimeTensorrt().provider_options(checked({"workspace": 1 << 30}))
    cache = Path(options["trt_engine_cache_path"])
    assert cache.stat().st_mode & 0o777 == 0o700
    assert options["trt_max_workspace_size"] == str(1 << 30)
    assert "trt_engine_cache_path" not in OnnxRuntimeTensorrt().provider_options(
        checked({"engine_cache": False})
    )


def test_build_run_census_and_profile_on_the_provider_at_hand(tmp_path: Path) -> None:
    backend = OnCpu()
    artefact = backend.build(ir.from_proto(dynamic()), tmp_path, {"allow_fallback": True}, _ignore)
    assert set(artefact.files) == {"model.onnx", "session.json"} == {p.name for p in tmp_path.iterdir()}
    assert read_settings(tmp_path / "model.onnx")["allow_fallback"] is True
    feeds = zeros_for(tmp_path / "model.onnx")
    assert backend.load(tmp_path / "model.onnx").run(feeds)["y"].shape == (1, 32, 16, 16)
    assert sum(backend.census(tmp_path / "model.onnx")["by_provider"].values()) > 0
    assert {t.provider for t in backend.profile(tmp_path / "model.onnx", feeds, runs=3)} == {CPU}


def test_damaged_settings_are_refused(tmp_path: Path) -> None:
    for text in ("{", "[]", json.dumps({"unknown": 1})):
        (tmp_path / "session.json").write_text(text)
        with pytest.raises(InputError):
            read_settings(tmp_path / "model.onnx")


def test_node_times_are_means() -> None:
    event = {
        "cat": "Node",
        "name": "conv_kernel_time",
        "dur": 30,
        "args": {"op_name": "Conv", "provider": "P"},
    }
    other = {"cat": "Session", "name": "model_run", "dur": 99}
    (time,) = node_times([event, event, other], runs=2)
    assert (time.name, time.op_type, time.microseconds, time.provider) == ("conv", "Conv", 30.0, "P")
