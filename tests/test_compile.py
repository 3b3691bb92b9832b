"""Whole compiles of the reference models, through the command line and the Python API."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

import sparsecc
from sparsecc.cli import main
from sparsecc.tasks.compile import compile_model

FILES = set("model.onnx plan.json report.json report.html recipe.yaml probes.npz manifest.json".split())


@dataclass(frozen=True)
class Compiled:
    """A bundle and what the command that made it printed."""

    folder: Path
    printed: dict[str, Any]
    errors: str

    def json(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / name).read_text())
        return found


@pytest.fixture(scope="module")
def resnet(root: Path) -> Path:
    return root / "models" / "digits_resnet.onnx"


@pytest.fixture(scope="module")
def vit(root: Path) -> Path:
    return root / "models" / "digits_vit.onnx"


@pytest.fixture(scope="module")
def compiled(resnet: Path, root: Path, tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    """The ResNet at half of its work, by the command line in a process of its own, measured and scored."""
    folder = tmp_path_factory.mktemp("compile") / "out"
    data = f"{root / 'models' / 'digits.py'}:"
    line = [sys.executable, "-m", "sparsecc", "compile", str(resnet), "--ratio", "0.5", "-o", str(folder)]
    line += ["--json", "--eval", f"{data}accuracy"]
    done = subprocess.run(line, cwd=folder.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return Compiled(folder, json.loads(done.stdout), done.stderr)


def planned(model: Path, **options: Any) -> dict[str, Any]:
    """What a compile would decide, in this process: its report and plan."""
    request = {"model": str(model), "output": "", "dry_run": True, "options": {"ratio": 0.5, **options}}
    return compile_model(request, lambda event: None)


def outputs(model: Path | bytes, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    return dict(zip(names, session.run(None, dict(feeds)), strict=True))


def images(number: int = 4) -> dict[str, np.ndarray]:
    return {"image": np.random.default_rng(3).normal(0, 1, (number, 1, 16, 16)).astype(np.float32)}


def kept(plan: Mapping[str, Any], kind: str | None = None) -> list[tuple[int, int]]:
    """(kept, size) of every free group."""
    return [
        (g["kept"], g["size"])
        for g in plan["groups"]
        if g["pinned"] is None and (kind is None or g["kind"] == kind)
    ]


# The bundle ------------------------------------------------------------------------------------------


def test_a_compile_writes_a_whole_bundle(compiled: Compiled) -> None:
    assert {f.name for f in compiled.folder.iterdir()} == FILES
    assert {f.name for f in compiled.folder.parent.iterdir()} == {"out"}
    assert set(compiled.json("manifest.json")["files"]) == FILES - {"manifest.json"}
    assert "Traceback" not in compiled.errors


def test_json_on_stdout_is_the_report(compiled: Compiled) -> None:
    assert compiled.printed["bundle"] == str(compiled.folder)
    written = compiled.json("report.json")
    assert {k: compiled.printed[k] for k in written} == written


def test_the_report_holds_what_was_measured(compiled: Compiled, models_dir: Path) -> None:
    report = compiled.json("report.json")
    assert report["schema"] == "sparsecc.report/1"
    assert report["removed"]["share"] == pytest.approx(0.5, abs=0.02)
    assert report["removed"]["share"] == pytest.approx(1 - report["after"]["macs"] / report["before"]["macs"])
    low, high = report["latency"]["speedup"]["ci95"]
    assert 0 < low <= report["latency"]["speedup"]["estimate"] <= high
    assert report["accuracy"]["before"] == pytest.approx(0.992, abs=0.002)
    assert report["verification"]["max_relative_error"] < 1e-5
    assert report["before"]["bytes"] == pytest.approx(
        (models_dir / "digits_resnet.onnx").stat().st_size, rel=0.01
    )
    assert report["after"]["bytes"] == sum(
        f.stat().st_size for f in compiled.folder.iterdir() if f.suffix == ".onnx"
    )


def test_the_counts_of_the_report_are_those_of_the_file(compiled: Compiled) -> None:
    model = onnx.load(compiled.folder / "model.onnx")
    floats = [t for t in model.graph.initializer if t.data_type == TensorProto.FLOAT]
    report = compiled.json("report.json")
    assert sum(int(np.prod(t.dims)) for t in floats) == report["after"]["params"]
    onnx.checker.check_model(model, full_check=True)


def test_the_plan_lists_every_constant_that_lost_slots(compiled: Compiled, resnet: Path) -> None:
    plan = compiled.json("plan.json")
    assert plan["schema"] == "sparsecc.plan/1"
    promised = {"schema", "model", "tensors", "groups", "dropped_nodes", "patterns", "quantization"}
    assert promised <= set(plan)
    before = {t.name: tuple(t.dims) for t in onnx.load(resnet).graph.initializer}
    after = {t.name: tuple(t.dims) for t in onnx.load(compiled.folder / "model.onnx").graph.initializer}
    for name, entry in plan["tensors"].items():
        for axis, fact in entry.items():
            assert fact["size"] == before[name][int(axis)]
            assert len(fact["keep"]) == after[name][int(axis)] < fact["size"]
            assert fact["keep"] == sorted(set(fact["keep"]))
    assert {n for n in before if n in after and before[n] != after[n]} <= set(plan["tensors"])
    for group in plan["groups"]:
        for name, axis in group["members"]:
            assert before[name][axis] % group["size"] == 0
        assert group["kept"] == group["size"] or group["pinned"] is None


def test_every_kept_weight_is_the_original_bit_for_bit(compiled: Compiled, resnet: Path) -> None:
    before = {t.name: numpy_helper.to_array(t) for t in onnx.load(resnet).graph.initializer}
    model = onnx.load(compiled.folder / "model.onnx")
    after = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    compared = 0
    for name, entry in compiled.json("plan.json")["tensors"].items():
        wanted = before[name]
        for axis, fact in entry.items():
            wanted = np.take(wanted, fact["keep"], axis=int(axis))
        np.testing.assert_array_equal(after[name], wanted)
        compared += 1
    assert compared > 10


def zeroed_by_plan(model: onnx.ModelProto, plan: Mapping[str, Any]) -> bytes:
    """The outsiders' check: plan.json, onnx and numpy alone. Zero the removed slices that are summed over."""
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor).copy()
        for axis, fact in plan["tensors"].get(tensor.name, {}).items():
            if fact["summed"]:
                gone = sorted(set(range(fact["size"])) - set(fact["keep"]))
                np.moveaxis(array, int(axis), 0)[gone] = 0
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    data: bytes = model.SerializeToString()
    return data


def test_an_outsider_finds_the_same_outputs_from_the_plan(compiled: Compiled, resnet: Path) -> None:
    plan = compiled.json("plan.json")
    assert not any(g["mixes"] for g in plan["groups"] if g["kept"] < g["size"])
    wanted = outputs(zeroed_by_plan(onnx.load(resnet), plan), images())["logits"]
    found = outputs(compiled.folder / "model.onnx", images())["logits"]
    dense = outputs(resnet, images())["logits"]
    scale = np.abs(wanted).max()
    assert np.abs(found - wanted).max() < 1e-5 * scale
    assert np.abs(dense - wanted).max() > 1e-2 * scale


def test_an_outsider_finds_the_same_for_heads_and_their_widths(vit: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"prune": ("heads", "head_dims"), "ratio": 0.15, "measure": False, "align": 1}
    made = sparsecc.compile(vit, output=tmp_path / "out", **options)
    lost = {g["kind"] for g in made.plan["groups"] if g["kept"] < g["size"]}
    assert lost == {"head", "head_dim"}
    wanted = outputs(zeroed_by_plan(onnx.load(vit), made.plan), images())["logits"]
    found = outputs(tmp_path / "out" / "model.onnx", images())["logits"]
    assert np.abs(found - wanted).max() < 1e-5 * np.abs(wanted).max()


def test_the_same_recipe_gives_the_same_bytes(compiled: Compiled, resnet: Path, root: Path) -> None:
    data = f"{root / 'models' / 'digits.py'}:"
    again = compiled.folder.parent / "again"
    line = f"compile {resnet} --recipe {compiled.folder / 'recipe.yaml'} -o {again} --no-measure -q"
    assert main([*line.split(), "--eval", f"{data}accuracy"]) == 0
    for name in ("model.onnx", "plan.json"):
        assert (again / name).read_bytes() == (compiled.folder / name).read_bytes()


def test_a_bundle_verifies_until_it_is_touched(
    compiled: Compiled, resnet: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "copy"
    folder.mkdir()
    for file in compiled.folder.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    assert main(["verify", str(folder), "--model", str(resnet), "--json"]) == 0
    checks = json.loads(capsys.readouterr().out)["checks"]
    assert {c["check"] for c in checks} >= {"manifest", "numerics"}
    assert all(c["ok"] for c in checks)
    model = bytearray((folder / "model.onnx").read_bytes())
    model[len(model) // 2] ^= 1
    (folder / "model.onnx").write_bytes(model)
    assert main(["verify", str(folder), "-q"]) == 1
    assert "model.onnx" in capsys.readouterr().err


def test_verify_finds_another_original(compiled: Compiled, vit: Path) -> None:
    with pytest.raises(sparsecc.errors.SparseccError):
        sparsecc.verify(compiled.folder, model=vit)


def test_compare_and_profile_take_the_bundle(
    compiled: Compiled, resnet: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", str(resnet), str(compiled.folder), "--json"]) == 0
    compared = json.loads(capsys.readouterr().out)
    assert compared["schema"] == "sparsecc.compare/1"
    assert compared["outputs"]["max_relative_error"] > 0
    assert main(["profile", str(compiled.folder), "--layers", "--json"]) == 0
    profiled = json.loads(capsys.readouterr().out)
    assert profiled["cpu_ms"]["p50"] > 0
    assert profiled["layers"]


# What is decided -------------------------------------------------------------------------------------


def test_a_dry_run_decides_the_same_and_writes_nothing(
    compiled: Compiled, resnet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    made = sparsecc.compile(resnet, ratio=0.5, dry_run=True)
    assert made.bundle is None
    assert made.plan == compiled.json("plan.json")
    assert list(tmp_path.iterdir()) == []


def test_ratio_zero_gives_the_dense_outputs(resnet: Path, tmp_path: Path) -> None:
    made = sparsecc.compile(resnet, ratio=0, output=tmp_path / "out", measure=False)
    assert made.plan["tensors"] == {}
    assert made.report["after"]["params"] == made.report["before"]["params"]
    dense, found = (outputs(m, images())["logits"] for m in (resnet, tmp_path / "out" / "model.onnx"))
    assert np.abs(found - dense).max() <= 1e-6 * np.abs(dense).max()


def test_a_model_with_nothing_to_remove_compiles_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", 4]) for n in "xy"]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", values[:1], values[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), tmp_path / "m.onnx")
    line = [
        "compile",
        str(tmp_path / "m.onnx"),
        "--ratio",
        "0.5",
        "--no-measure",
        "-o",
        str(tmp_path / "out"),
    ]
    assert main(line) == 0
    assert "nothing in this model can be removed" in " ".join(capsys.readouterr().out.split())
    assert (tmp_path / "out" / "model.onnx").is_file()


@pytest.mark.parametrize("metric", ["macs", "params", "channels"])
@pytest.mark.parametrize("allocator", ["uniform", "global"])
def test_the_ratio_counts_the_metric(resnet: Path, metric: str, allocator: str) -> None:
    made = planned(resnet, metric=metric, allocator=allocator, ratio=0.4)
    removed = made["report"]["removed"]
    assert removed["reached"]
    assert 0.4 <= removed["share"] < 0.47
    if metric != "channels":
        cost = {side: made["report"][side][metric] for side in ("before", "after")}
        assert removed["share"] == pytest.approx(1 - cost["after"] / cost["before"])


@pytest.mark.parametrize("align", [1, 4, 16])
def test_counts_are_multiples_of_what_was_asked(resnet: Path, align: int) -> None:
    counts = kept(planned(resnet, align=align)["plan"])
    assert any(count < size for count, size in counts)
    assert all(count % align == 0 for count, size in counts if count < size)


def test_a_ratio_that_cannot_be_reached_says_how_far_it_came(resnet: Path) -> None:
    made = planned(resnet, ratio=0.9, only=("block2.expand.weight",))
    assert not made["report"]["removed"]["reached"]
    assert any("is the most that can go" in w for w in made["report"]["warnings"])


def test_keep_and_only_name_what_may_go(resnet: Path) -> None:
    everything = planned(resnet)["plan"]
    name = next(g["members"][0][0] for g in everything["groups"] if g["kept"] < g["size"])
    spared = planned(resnet, keep=(name,))["plan"]
    alone = planned(resnet, only=(name,), ratio=0.05)["plan"]
    for group in spared["groups"]:
        if any(member == name for member, _ in group["members"]):
            assert group["kept"] == group["size"]
    lost = [g for g in alone["groups"] if g["kept"] < g["size"]]
    assert lost
    assert all(any(member == name for member, _ in g["members"]) for g in lost)
    assert len(kept(spared)) < len(kept(everything))


@pytest.mark.parametrize(
    "prune", [("heads",), ("head_dims",), ("channels",), ("channels", "heads")], ids=",".join
)
def test_only_the_kinds_asked_for_go(vit: Path, prune: tuple[str, ...]) -> None:
    plan = planned(vit, prune=prune, ratio=0.1, align=1)["plan"]
    kinds = {name.removesuffix("s") for name in prune}
    assert {g["kind"] for g in plan["groups"] if g["pinned"] is None} == kinds
    assert {g["kind"] for g in plan["groups"] if g["kept"] < g["size"]} <= kinds
    assert any(g["kept"] < g["size"] for g in plan["groups"])


def test_the_seed_decides_what_random_removes(resnet: Path) -> None:
    plans = [planned(resnet, criterion="random", seed=seed)["plan"]["tensors"] for seed in (1, 1, 2)]
    assert plans[0] == plans[1]
    assert plans[0] != plans[2]


def test_inputs_and_outputs_change_only_when_asked(resnet: Path, tmp_path: Path) -> None:
    asked: dict[str, Any] = {"ratio": 0.5, "metric": "channels", "prune_io": ("*", "logits"), "align": 1}
    made = sparsecc.compile(resnet, output=tmp_path / "out", **asked, measure=False)
    shapes = {o.name: o.shape for o in ort.InferenceSession(tmp_path / "out" / "model.onnx").get_outputs()}
    assert shapes["logits"][1] < 10
    assert not any((g["pinned"] or "").startswith("graph output") for g in made.plan["groups"])
    assert any((g["pinned"] or "").startswith("graph output") for g in planned(resnet)["plan"]["groups"])


# Types -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("quantize", "share"), [("int8", 0.45), ("fp16", 0.6)])
def test_types_make_it_smaller_and_keep_the_accuracy(
    resnet: Path, root: Path, tmp_path: Path, quantize: str, share: float
) -> None:
    data = f"{root / 'models' / 'digits.py'}:"
    made = sparsecc.compile(
        resnet,
        output=tmp_path / "out",
        ratio=0,
        quantize=quantize,
        calib=f"{data}calibration",
        evaluate=f"{data}accuracy",
        measure=False,
    )
    assert made.report["after"]["bytes"] < share * made.report["before"]["bytes"]
    assert made.report["accuracy"]["after"] >= made.report["accuracy"]["before"] - 0.015
    assert made.plan["quantization"]


# Ways in ---------------------------------------------------------------------------------------------


def _graphsurgeon(path: Path) -> Any:
    gs = pytest.importorskip("onnx_graphsurgeon")
    return gs.import_onnx(onnx.load(path))


WAYS: dict[str, Callable[[Path], Any]] = {
    "bytes": Path.read_bytes,
    "ModelProto": onnx.load,
    "onnx_ir.Model": ir.load,
    "gs.Graph": _graphsurgeon,
}


@pytest.mark.parametrize("way", WAYS)
def test_models_in_memory_compile_as_files_do(
    compiled: Compiled, resnet: Path, tmp_path: Path, way: str
) -> None:
    made = sparsecc.compile(WAYS[way](resnet), ratio=0.5, output=tmp_path / "out", measure=False)
    wanted = compiled.json("plan.json")
    assert made.plan["tensors"] == wanted["tensors"]
    found, expected = (
        outputs(f / "model.onnx", images())["logits"] for f in (tmp_path / "out", compiled.folder)
    )
    np.testing.assert_array_equal(found, expected)
