"""Whose fault it is where something does not run in torch: the user's module, or what was made of it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from sparsecc.errors import InputError, InternalError

TORCH_FAILURES = (
    RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError, ArithmeticError,
)  # fmt: skip
"""What torch and a user's forward raise: sizes that do not fit, operators that are missing, export's refusals."""


def reason_of(failure: BaseException) -> str:
    """The first line that a failure says, its kind where it says nothing."""
    told = str(failure).strip()
    return told.splitlines()[0][:200] if told else type(failure).__name__


@torch.no_grad()
def run_in_eval(module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """What a module gives for these arguments in eval mode; its modes stay what they were."""
    modes = {path: part.training for path, part in module.named_modules()}
    module.eval()
    try:
        return module(*args, **kwargs)
    finally:
        for path, part in module.named_modules():
            part.training = modes[path]


def why_it_does_not_run(module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    """What a module's own forward raises on these arguments in eval mode; "" where it runs."""
    try:
        run_in_eval(module, args, kwargs)
    except TORCH_FAILURES as e:
        return f"{type(e).__name__}: {reason_of(e)}" if str(e).strip() else type(e).__name__
    return ""


def does_not_run(module: nn.Module, reason: str) -> InputError:
    """What to tell of a module whose own forward raises `reason`."""
    return InputError(
        f"{type(module).__name__} does not run on these example inputs ({reason}): give inputs that its forward takes"
    )


@contextlib.contextmanager
def made_by_us(module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Iterator[None]:
    """What fails inside is a fault of ours, where the module itself runs: torch exports some that do not."""
    try:
        yield
    except TORCH_FAILURES as e:
        if reason := why_it_does_not_run(module, args, kwargs):
            raise does_not_run(module, reason) from e
        raise InternalError(
            f"{type(module).__name__} runs, what was made of it does not ({type(e).__name__}: {reason_of(e)}): please "
            "report it with the module, or with the program that torch.export makes of it"
        ) from e
