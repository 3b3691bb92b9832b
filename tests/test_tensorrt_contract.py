"""Every name of TensorRT's that our code uses exists in the real APIs of TensorRT 10, 11 and RTX.

The lists of names are quick to read. The slow tests (`make contract`) import NVIDIA's real bindings of 10 and 11
instead, which also tell how many arguments everything takes.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType

import pytest

from sparsecc.backends.nvidia.options import BuildOptions
from sparsecc.backends.nvidia.scripts import python_script
from tests.tensorrt_bindings import Bindings, accepted, as_members, bindings

VERSIONS = ("10.16", "11.4")
NOT_OF_TENSORRT = {"Severity", "Enumerator", "Members", "Api", "OnlyRtxApi"}
"""Classes of layer_types that describe no class of TensorRT's of that name."""

Members = Mapping[str, list[str]]


def _types(root: Path) -> dict[str, ast.ClassDef]:
    tree = ast.parse((root / "backends" / "nvidia" / "layer_types.py").read_text())
    return {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}


def _members_used(node: ast.ClassDef) -> Iterator[str]:
    for statement in node.body:
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            yield statement.target.id
        elif isinstance(statement, ast.FunctionDef) and not statement.name.startswith("__"):
            yield statement.name


def _missing(root: Path, api: Members, *, rtx: bool) -> list[str]:
    """`Class.member` for everything in layer_types that this API lacks."""
    missing = []
    for name, node in _types(root).items():
        wanted = name.removeprefix("OnlyRtx")
        if name.startswith("OnlyRtx") and not rtx:
            continue
        if name in ("Api", "OnlyRtxApi"):
            missing += [m for m in _members_used(node) if m not in api]
        elif name not in NOT_OF_TENSORRT:
            owner = api.get(wanted)
            missing += [f"{wanted}.{m}" for m in _members_used(node) if owner is None or m not in owner]
    return missing


def _listed(shared: Path, version: str) -> Members:
    path = shared / "tensorrt" / f"api-names-{version}.json"
    if not path.is_file():
        pytest.skip(f"no list of TensorRT {version}'s names at {path}")
    names: Members = json.loads(path.read_text())
    return names


def _members_of(module: ModuleType) -> Members:
    return {name: dir(getattr(module, name)) for name in dir(module)}


@pytest.mark.parametrize("version", VERSIONS)
def test_names_exist_in_tensorrt(version: str, root: Path, shared: Path) -> None:
    assert _missing(root, _listed(shared, version), rtx=False) == []


@pytest.mark.rtx
def test_names_exist_in_rtx(root: Path) -> None:
    import tensorrt_rtx_bindings

    assert _missing(root, _members_of(tensorrt_rtx_bindings), rtx=True) == []


@pytest.mark.parametrize("version", VERSIONS)
def test_a_name_that_is_gone_is_found(version: str, root: Path, shared: Path) -> None:
    """The check itself: without `set_flag`, and without a whole class, it must fail."""
    names = {k: list(v) if isinstance(v, list) else v for k, v in _listed(shared, version).items()}
    names["IBuilderConfig"].remove("set_flag")
    del names["MemoryPoolType"]
    found = _missing(root, names, rtx=False)
    assert {"IBuilderConfig.set_flag", "MemoryPoolType.WORKSPACE"} <= set(found)


@pytest.fixture(scope="module", params=[10, 11])
def real(request: pytest.FixtureRequest) -> Bindings:
    """NVIDIA's own module of a major version, kept in pytest's cache."""
    return bindings(request.param, request.config.cache.mkdir("tensorrt-bindings"))


@pytest.mark.slow
def test_names_exist_in_the_real_bindings(real: Bindings, root: Path) -> None:
    names = real.names()
    assert _missing(root, as_members(names), rtx=False) == []
    removed = {name: {m: d for m, d in of.items() if m != "set_flag"} for name, of in names.items()}
    assert _missing(root, as_members(removed), rtx=False) == ["IBuilderConfig.set_flag"]


@pytest.mark.slow
def test_calls_have_as_many_arguments_as_the_real_bindings_take(real: Bindings, root: Path) -> None:
    names, wrong, checked = real.names(), [], 0
    for owner, name, given in _calls(root):
        forms = accepted(names[owner][name])
        checked += bool(forms)
        if forms and not any(least <= given <= most for least, most in forms):
            wrong.append(f"{owner}.{name} with {given}: it takes {forms}")
    assert wrong == []
    assert checked > 40


def _calls(root: Path) -> Iterator[tuple[str, str, int]]:
    """(class, function, number of arguments) of all that layer_types calls; class "" is the module."""
    for name, node in _types(root).items():
        if name.startswith("OnlyRtx") or (name in NOT_OF_TENSORRT and name != "Api"):
            continue
        for function in (s for s in node.body if isinstance(s, ast.FunctionDef)):
            if not function.name.startswith("__"):
                arguments = function.args.posonlyargs or function.args.args
                yield "" if name == "Api" else name, function.name, len(arguments) - 1


_OURS = """
import sys, threading
import tensorrt_bindings as api
from sparsecc.backends.nvidia.api import TENSORRT, Log, logger_into, make_builder, progress_monitor
from sparsecc.errors import UnavailableError

log, seen, stop = Log(), [], threading.Event()
logger = logger_into(api, log)
for severity in (api.ILogger.Severity.ERROR, api.ILogger.Severity.WARNING, api.ILogger.Severity.VERBOSE):
    logger.log(severity, severity.name)
assert (log.errors, log.warnings, list(log.other)) == (["ERROR"], ["WARNING"], ["VERBOSE"]), log
monitor = progress_monitor(api, lambda what, share: seen.append((what, share)), stop)
monitor.phase_start("all", None, 2)
assert monitor.step_complete("all", 0) is True
stop.set()
assert monitor.step_complete("all", 1) is False
assert seen == [("all", 0.5), ("all", 1.0)], seen
try:
    make_builder(api, TENSORRT, logger)
except UnavailableError as e:
    print(e)
"""


@pytest.mark.slow
def test_our_classes_derive_from_the_real_ones(real: Bindings, root: Path) -> None:
    done = real.run(_OURS, extra=root)
    assert done.returncode == 0, done.stderr
    assert (
        "its builder does not start here (no usable GPU or driver): use --target tensorrt-rtx" in done.stdout
    )


@pytest.mark.slow
def test_the_emitted_script_runs_up_to_the_builder(real: Bindings, tmp_path: Path) -> None:
    (tmp_path / "build.py").write_text(python_script(BuildOptions()))
    done = real.run(
        "import runpy, sys; runpy.run_path(sys.argv[1], run_name='__main__')", str(tmp_path / "build.py")
    )
    assert done.returncode == 3, done.stderr
    assert done.stderr.startswith("TensorRT's builder does not start here")
    assert len(done.stderr.splitlines()) == 1


RECEIVERS = {
    "trt": "",
    "builder": "Builder",
    "network": "INetworkDefinition",
    "parser": "OnnxParser",
    "error": "ParserError",
    "config": "IBuilderConfig",
    "profile": "IOptimizationProfile",
}
"""What the variables of the emitted build.py hold."""


def _uses(script: str) -> Iterator[tuple[str, str]]:
    """(class, member) of every attribute of a known variable in a script; class "" is the module."""
    for node in ast.walk(ast.parse(script)):
        if not isinstance(node, ast.Attribute):
            continue
        if isinstance(node.value, ast.Name) and node.value.id in RECEIVERS:
            yield RECEIVERS[node.value.id], node.attr
        inner = node.value
        if isinstance(inner, ast.Attribute) and isinstance(inner.value, ast.Name) and inner.value.id == "trt":
            yield inner.attr, node.attr


@pytest.mark.parametrize("version", VERSIONS)
def test_emitted_script_uses_names_that_exist(version: str, shared: Path) -> None:
    api = _listed(shared, version)
    options = BuildOptions.from_mapping(
        {
            "workspace": "1GiB",
            "stripped": True,
            "version_compatible": True,
            "weight_streaming": True,
            "sparse_weights": True,
            "tf32": False,
            "hardware_compatible": "ampere+",
            "profiles": {"x": "1x3|2x3|4x3"},
        }
    )
    script = python_script(options)
    uses = set(_uses(script))
    assert len(uses) > 25
    assert [use for use in uses if use[1] not in (api[use[0]] if use[0] else api)] == []
    for flag in ("VERSION_COMPATIBLE", "REFIT", "STRIP_PLAN", "WEIGHT_STREAMING", "SPARSE_WEIGHTS"):
        assert repr(flag) in script
        assert flag in api["BuilderFlag"]
    assert "AMPERE_PLUS" in api["HardwareCompatibilityLevel"]


def test_only_one_file_imports_tensorrt(root: Path) -> None:
    """`nvidia/api.py` alone opens the door, by name, and only when asked."""
    for path in sorted((root / "backends").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not [
                n for n in names if n.split(".")[0] in {"tensorrt", "tensorrt_bindings", "tensorrt_rtx"}
            ]


def test_no_command_is_a_string_for_a_shell(root: Path) -> None:
    """Commands are lists of arguments everywhere; `devices` alone quotes them for the shell on the other side."""
    for folder in ("backends", "passes", "sparsecc"):
        for path in sorted((root / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.keyword):
                    assert node.arg != "shell", path
                if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                    assert (node.value.id, node.attr) not in {("os", "system"), ("os", "popen")}, path
                    assert not node.attr.startswith(("getoutput", "getstatusoutput")), path


def test_nothing_of_nvidias_is_imported_with_the_backends() -> None:
    import subprocess
    import sys

    script = (
        "import sys, sparsecc.backends.nvidia.engine, sparsecc.backends.nvidia.rtx_engine;"
        "print([m for m in sys.modules if m.startswith(('tensorrt', 'torch', 'pycuda', 'cuda'))])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr


def test_keywords_are_not_used(root: Path) -> None:
    """Names of arguments differ between versions of the bindings: our types only allow them by position."""
    for node in _types(root).values():
        for function in (s for s in node.body if isinstance(s, ast.FunctionDef)):
            arguments = function.args
            assert not arguments.args or [a.arg for a in arguments.args] == ["self"], (
                node.name,
                function.name,
            )
            assert not arguments.kwonlyargs
