"""Torch in, training on: prune a module to a smaller one that trains, and give ONNX files gradients."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sparsecc.errors import MissingPackageError

try:
    import torch  # noqa: F401
except ImportError as e:
    raise MissingPackageError("sparsecc.torch needs torch: run pip install 'sparsecc[torch]'") from e

if TYPE_CHECKING:
    from sparsecc.torch.onnx_ops.module import from_onnx, write_back
    from sparsecc.torch.optimizers import prune_optimizer, prune_state_dict
    from sparsecc.torch.plan import TorchPlan
    from sparsecc.torch.pruner import Pruner
    from sparsecc.torch.pruning import groups_of, plan_of, prune
    from sparsecc.torch.saved import apply_plan, load, save
    from sparsecc.torch.training.distillation import distill

_HOMES = {
    "Pruner": "pruner",
    "TorchPlan": "plan",
    "apply_plan": "saved",
    "distill": "training.distillation",
    "from_onnx": "onnx_ops.module",
    "groups_of": "pruning",
    "load": "saved",
    "plan_of": "pruning",
    "prune": "pruning",
    "prune_optimizer": "optimizers",
    "prune_state_dict": "optimizers",
    "save": "saved",
    "write_back": "onnx_ops.module",
}
__all__ = [
    "Pruner",
    "TorchPlan",
    "apply_plan",
    "distill",
    "from_onnx",
    "groups_of",
    "load",
    "plan_of",
    "prune",
    "prune_optimizer",
    "prune_state_dict",
    "save",
    "write_back",
]


def __getattr__(name: str) -> Any:
    """The verbs, imported when first used. No file may have the name of a verb: it would hide it."""
    if name not in _HOMES:
        raise AttributeError(f"module 'sparsecc.torch' has no attribute '{name}'")
    from importlib import import_module

    found = getattr(import_module(f"sparsecc.torch.{_HOMES[name]}"), name)
    globals()[name] = found
    return found
