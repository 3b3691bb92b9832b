"""Pruned modules on disk and in checkpoints: weights and a plan for the user's own class; no code, no pickles."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'sparsecc[torch]'")
pytest.importorskip("safetensors")
from torch import Tensor, nn  # noqa: E402

import sparsecc.torch as st  # noqa: E402
from sparsecc.errors import InputError  # noqa: E402
from sparsecc.torch.graph_form import PrunedGraph  # noqa: E402


class Net(nn.Module):
    """Convolutions with a residual, and two layers with one weight."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.wide = nn.Conv2d(width, 32, 3, padding=1, groups=4)
        self.back = nn.Conv2d(32, width, 1)
        self.one = nn.Linear(width, width)
        self.two = nn.Linear(width, width)
        self.two.weight = self.one.weight
        self.head = nn.Linear(width, 5)
        self.width = width

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = (x + self.back(torch.relu(self.wide(x)))).mean((2, 3))
        result: Tensor = self.head(self.two(torch.relu(self.one(x))))
        return result


class Baked(nn.Module):
    """A forward with sizes in it: only the exported graph can lose heads' channels."""

    def __init__(self) -> None:
        super().__init__()
        self.grow = nn.Linear(12, 32)
        self.out = nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        parts = torch.relu(self.grow(x)).reshape(-1, 4, 8).transpose(1, 2).reshape(-1, 32)
        result: Tensor = self.out(parts)
        return result


def images(count: int = 4) -> Tensor:
    made: Tensor = torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    return made


def net() -> Net:
    torch.manual_seed(0)
    return Net()


def test_a_module_comes_back_into_its_own_class(tmp_path: Path) -> None:
    small = st.prune(net(), images(), ratio=0.5).eval()
    st.save(small, tmp_path / "small.safetensors")
    fresh = Net()
    again = st.load(tmp_path / "small.safetensors", fresh).eval()
    assert type(again) is Net
    assert torch.equal(again(images()), small(images()))
    assert again.one.weight is again.two.weight
    assert again.stem.out_channels == again.stem.weight.shape[0] < 16
    assert fresh.stem.weight.shape[0] == 16
    assert st.plan_of(again).to_json() == st.plan_of(small).to_json()
    again.train()
    again(images()).sum().backward()


def test_the_graph_form_is_exported_again(tmp_path: Path) -> None:
    x = torch.randn(3, 12)
    small = st.prune(Baked(), x, ratio=0.5, form="graph").eval()
    st.save(small, tmp_path / "g.safetensors")
    again = st.load(tmp_path / "g.safetensors", Baked(), x).eval()
    assert isinstance(again, PrunedGraph)
    assert torch.equal(again(x), small(x))
    with pytest.raises(InputError, match="give example_inputs"):
        st.load(tmp_path / "g.safetensors", Baked())
    with pytest.raises(InputError, match="other groups than the module that was saved"):
        st.load(tmp_path / "g.safetensors", nn.Linear(12, 4), x)


class Turned(nn.Module):
    """Two layers, and a buffer that is in no `state_dict`."""

    angles: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(12, 32), nn.Linear(32, 4)
        self.register_buffer("angles", torch.linspace(0, 1, 12), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.two(torch.relu(self.one(x * self.angles)))
        return result


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize(("kind", "form"), [(Turned, "module"), (Baked, "graph")])
def test_tensors_come_back_in_their_types(
    kind: type[nn.Module], form: str, dtype: Any, tmp_path: Path
) -> None:
    x = torch.randn(3, 12)
    small = st.prune(kind(), x, ratio=0.5, form=form).eval().to(dtype)
    st.save(small, tmp_path / "small.safetensors")
    fresh = kind()
    again = st.load(tmp_path / "small.safetensors", fresh, x).eval()
    assert {t.dtype for t in (*again.parameters(), *again.buffers())} == {dtype}
    assert {t.dtype for t in fresh.parameters()} == {torch.float32}
    assert torch.equal(again(x.to(dtype)), small(x.to(dtype)))


def test_ties_outlive_a_change_of_types_and_integers_become_no_floats(tmp_path: Path) -> None:
    small: Any = st.prune(net(), images(), ratio=0.5).eval().double()
    st.save(small, tmp_path / "small.safetensors")
    again: Any = st.load(tmp_path / "small.safetensors", Net()).eval()
    assert again.one.weight is again.two.weight
    assert again.norm.num_batches_tracked.dtype == torch.int64
    assert torch.equal(again(images().double()), small(images().double()))
    small.head.bias = nn.Parameter(torch.zeros(5, dtype=torch.int8), requires_grad=False)
    st.save(small, tmp_path / "small.safetensors")
    with pytest.raises(InputError, match=r"head\.bias holds torch\.float32, not torch\.int8"):
        st.load(tmp_path / "small.safetensors", Net())


def test_the_file_is_tensors_and_text(tmp_path: Path) -> None:
    from safetensors import safe_open

    st.save(st.prune(net(), images(), ratio=0.5), tmp_path / "small.safetensors")
    data = (tmp_path / "small.safetensors").read_bytes()
    header = json.loads(data[8 : 8 + struct.unpack("<Q", data[:8])[0]])
    told = json.loads(header["__metadata__"]["sparsecc"])
    assert told["shared"] == {"two.weight": "one.weight"}
    with safe_open(tmp_path / "small.safetensors", "pt") as file:
        assert "two.weight" not in set(file.keys())


def _forged(path: Path, **changes: Any) -> Path:
    """The file with other words in its plan."""
    from safetensors.torch import load_file, save_file

    data = path.read_bytes()
    told = json.loads(json.loads(data[8 : 8 + struct.unpack("<Q", data[:8])[0]])["__metadata__"]["sparsecc"])
    told["plan"] |= changes
    other = path.with_name("forged.safetensors")
    save_file(load_file(path), other, {"sparsecc": json.dumps(told)})
    return other


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attributes": [["stem", "forward", 3]]}, "has no size 'stem.forward'"),
        ({"attributes": [["stem", "kernel_size", "x"]]}, "has no size 'stem.kernel_size'"),
        ({"attributes": [["", "__class__", 3]]}, "has no size"),
        ({"tensors": {"stem.weight": {"0": [3, 3]}}}, "no plan of a pruned torch module"),
        ({"tensors": {"stem.weight": {"0": [99]}}}, "has shape"),
        ({"tensors": {"gone.weight": {"0": [1]}}}, "has no tensor 'gone.weight'"),
        ({"tensors": {}, "attributes": []}, "does not fit Net"),
        ({"groups": 3}, "no plan"),
        ({"attributes": [["stem", "out_channels", -5]]}, "'stem.out_channels' of Net cannot become -5"),
        ({"attributes": [["stem", "out_channels", 15]]}, "cannot become 15"),
        ({"attributes": [["norm", "_version", 1]]}, "'norm._version' of Net cannot become 1"),
        ({"attributes": [["wide", "groups", 5]]}, "cannot become 5"),
        ({"attributes": [["wide", "groups", 0]]}, "cannot become 0"),
        ({"attributes": [["", "width", 17]]}, "'.width' of Net cannot become 17"),
        ({"form": "../../x"}, "no plan"),
        ({"before": 10**400}, "no plan"),
        ({"error": float("nan")}, "no plan"),
        ({"tensors": {"stem.weight": {"0": [1 << 70]}}}, "no plan"),
        ({"tensors": {"stem.weight": {"0": [float("inf")]}}}, "no plan"),
        ({"tensors": {"stem.weight": {"0": [0.5, 1.7]}}}, "no plan"),
        ({"tensors": {"stem.weight": {"-7": [0, 1]}}}, "no plan"),
    ],
)
def test_a_plan_of_a_stranger_sets_sizes_and_nothing_else(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    st.save(st.prune(net(), images(), ratio=0.5), tmp_path / "small.safetensors")
    with pytest.raises(InputError, match=message):
        st.load(_forged(tmp_path / "small.safetensors", **changes), Net())


def test_damaged_words_are_told(tmp_path: Path) -> None:
    path = tmp_path / "small.safetensors"
    st.save(st.prune(net(), images(), ratio=0.5), path)
    data = path.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    header, body = json.loads(data[8 : 8 + size]), data[8 + size :]
    told = json.loads(header["__metadata__"]["sparsecc"])
    deep = "[" * 200_000
    changed = ({"shared": [1]}, {"shared": {"a": [1]}}, {"shared": None}, {"types": [1]}, {"types": {"a": 1}})
    words: list[Any] = [["sparsecc"], None, {"sparsecc": 5}, {"sparsecc": deep}]
    words += [{"sparsecc": json.dumps(told | change)} for change in changed]
    for text in (deep, *(json.dumps(header | {"__metadata__": word}) for word in words)):
        path.write_bytes(struct.pack("<Q", len(text)) + text.encode() + body)
        with pytest.raises(InputError, match=r"no file of sparsecc\.torch\.save") as caught:
            st.load(path, Net())
        assert "\n" not in str(caught.value)


def test_slots_beyond_a_group_of_the_graph_form_are_told(tmp_path: Path) -> None:
    x = torch.randn(3, 12)
    small = st.prune(Baked(), x, ratio=0.5, form="graph")
    st.save(small, tmp_path / "g.safetensors")
    groups = st.plan_of(small).to_json()["groups"]
    for row in groups:
        row["slots"] = row["slots"] and [999]
    with pytest.raises(InputError, match="other groups than"):
        st.load(_forged(tmp_path / "g.safetensors", groups=groups), Baked(), x)


def test_a_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot write .*: make its folder, or choose another path"):
        st.save(st.prune(net(), images(), ratio=0.5), tmp_path / "none" / "small.safetensors")


def test_what_is_no_such_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.pt").write_bytes(b"\x80\x04.")
    (tmp_path / "list.safetensors").write_bytes(struct.pack("<Q", 2) + b"[]")
    for name in ("a.pt", "list.safetensors"):
        with pytest.raises(InputError, match=r"no file of sparsecc\.torch\.save"):
            st.load(tmp_path / name, Net())
    with pytest.raises(InputError, match="No such file"):
        st.load(tmp_path / "none", Net())
    st.save(st.prune(net(), images(), ratio=0.5), tmp_path / "small.safetensors")
    with pytest.raises(InputError, match="not that of the pruned class"):
        st.load(tmp_path / "small.safetensors", Net(8))
    with pytest.raises(InputError, match="carries no plan"):
        st.save(Net(), tmp_path / "x")


def trained(module: nn.Module, optimizer: Any, steps: int) -> None:
    module.train()
    x, y = images(16), torch.arange(16) % 5
    for _ in range(steps):
        loss = nn.functional.cross_entropy(module(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def test_a_checkpoint_goes_on_as_if_nothing_had_been(tmp_path: Path) -> None:
    """The user's own checkpoint: weights, plan and optimizer, read without pickles of code."""
    dense = net()
    optimizer = torch.optim.AdamW(dense.parameters(), 1e-2)
    trained(dense, optimizer, 3)
    small = st.prune(dense, images(), ratio=0.5)
    st.prune_optimizer(optimizer, dense, small)
    trained(small, optimizer, 2)
    kept = {
        "model": small.state_dict(),
        "optimizer": optimizer.state_dict(),
        "plan": st.plan_of(small).to_json(),
    }
    torch.save(kept, tmp_path / "checkpoint.pt")
    trained(small, optimizer, 3)

    read = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    again = st.apply_plan(Net(), st.TorchPlan.of_json(read["plan"]))
    again.load_state_dict(read["model"])
    other = torch.optim.AdamW(again.parameters(), 1e-2)
    other.load_state_dict(read["optimizer"])
    trained(again, other, 3)
    for name, tensor in small.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


def _pruning(module: nn.Module, pruner: Any, optimizer: Any, steps: int) -> None:
    for _ in range(steps):
        trained(module, optimizer, 1)
        pruner.step()


def test_a_pruner_goes_on_from_a_checkpoint(tmp_path: Path) -> None:
    def begun() -> tuple[Net, Any, Any]:
        module = net()
        return (
            module,
            st.Pruner(module, images(), ratio=0.5, steps=8, every=2, schedule="linear", rewind=1),
            torch.optim.AdamW(module.parameters(), 1e-2),
        )

    module, pruner, optimizer = begun()
    _pruning(module, pruner, optimizer, 5)
    state = {"model": module.state_dict(), "optimizer": optimizer.state_dict(), "pruner": pruner.state_dict()}
    torch.save(state, tmp_path / "checkpoint.pt")
    _pruning(module, pruner, optimizer, 4)

    read = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    again, resumed, other = begun()
    again.load_state_dict(read["model"])
    other.load_state_dict(read["optimizer"])
    resumed.load_state_dict(read["pruner"])
    assert resumed.current_ratio > 0
    _pruning(again, resumed, other, 4)
    first, second = pruner.finish().eval(), resumed.finish().eval()
    assert torch.equal(first(images()), second(images()))
    with pytest.raises(InputError, match="another module"):
        st.Pruner(Net(8), images()).load_state_dict(read["pruner"])
