"""Layer-wise relevance propagation as a backward pass: outputs stay what they are, gradients become relevance.

A gradient here is relevance per unit of activation, R / a, so that a tensor's relevance is its product with its
gradient. ReLUs, pools (winner takes all, or in proportion) and sums (in proportion to the summands) then need nothing;
the rules below replace what other functions send back ("On Pixel-Wise Explanations for Non-Linear Classifier
Decisions by Layer-Wise Relevance Propagation", Bach et al., 2015).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

Rule = Callable[[Tensor, Callable[..., Any], tuple[Any, ...], dict[str, Any]], Tensor]
"""(what a function gave, the function, its arguments) -> what gradients take the way of, in place of that."""
Rules = Mapping[str, Rule]
"""By the name of a torch function, as `torch.nn.functional` or `Tensor` has it."""

EPSILON = 0.01
"""How much of a root mean square the epsilon rule adds to each output: what contributions cancel out in fades."""
SMALLEST = 1e-6
"""Of a root mean square; what is smaller divides nothing."""


class Relevance(TorchFunctionMode):
    """Torch functions run as ever inside, and send back relevance where a rule says so."""

    def __init__(self, rules: Rules) -> None:
        super().__init__()
        self._rules = rules

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """What the function gives; its gradient is that of the rule."""
        found = func(*args, **(kwargs or {}))
        rule = self._rules.get(getattr(func, "__name__", ""))
        if rule is None or not isinstance(found, Tensor) or not found.requires_grad:
            return found
        path = rule(found, func, args, kwargs or {})
        return found.detach() + (path - path.detach())


def same_sign(
    found: Tensor, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Tensor:
    """alpha1-beta0: each output's relevance goes to what contributes to it with a positive sign, and where the output
    is below zero (a residual branch) with a negative one; the bias gets none while anything else does.
    """
    if len(args) < 2:
        return found
    x, weight, *rest = args
    others, named = [None, *rest[1:]] if rest else [], {k: v for k, v in kwargs.items() if k != "bias"}
    x_up, x_down, w_up, w_down = x.clamp(min=0), x.clamp(max=0), weight.clamp(min=0), weight.clamp(max=0)
    up = func(x_up, w_up, *others, **named) + func(x_down, w_down, *others, **named)
    down = func(x_up, w_down, *others, **named) + func(x_down, w_up, *others, **named)
    return torch.where(found >= 0, up * _ratio(found, up), down * _ratio(found, down))


def faded(found: Tensor, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """epsilon: in proportion to the contributions, less where they cancel out."""
    size = found.detach().abs()
    return found * (size / (size + EPSILON * _root_mean_square(found) + 1e-30))


def same_sign_product(
    found: Tensor, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Tensor:
    """A matrix product: linear in what is no weight; of two activations, half to each."""
    if any(_is_weight(part) for part in args):
        return same_sign(found, func, args, kwargs)
    return halved(found, func, args, kwargs)


def faded_product(
    found: Tensor, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Tensor:
    """As `same_sign_product`, by the epsilon rule."""
    return halved(faded(found, func, args, kwargs), func, args, kwargs)


def halved(found: Tensor, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """A product of two activations gives each half of its relevance."""
    both = [part for part in args if isinstance(part, Tensor) and part.requires_grad]
    return found / 2 if len(both) == 2 and not any(map(_is_weight, both)) else found


def without_bias(
    found: Tensor, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Tensor:
    """A sum with a weight, which is a bias, leaves the other summand all relevance."""
    others = [part for part in args if isinstance(part, Tensor) and not _is_weight(part)]
    if len(others) != 1 or not others[0].requires_grad:
        return found
    return others[0] * _ratio(found, others[0])


def through(found: Tensor, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """A function of one activation leaves it all relevance."""
    x = args[0] if args else None
    return x * _ratio(found, x) if isinstance(x, Tensor) and x.shape == found.shape else found


_LINEAR = ("linear", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
_CURVED = (
    "batch_norm layer_norm rms_norm group_norm instance_norm softmax log_softmax sigmoid tanh erf exp log sqrt "
    "rsqrt reciprocal pow square gelu silu mish elu celu selu hardswish hardsigmoid softplus softsign"
).split()
_COMMON: Rules = {**dict.fromkeys(_CURVED, through), "mul": halved}

ALPHA: Rules = {
    **_COMMON,
    **dict.fromkeys(_LINEAR, same_sign),
    "matmul": same_sign_product,
    "add": without_bias,
}
EPSILONS: Rules = {**_COMMON, **dict.fromkeys(_LINEAR, faded), "matmul": faded_product}


def _is_weight(part: Any) -> bool:
    """Whether it is a parameter, or a parameter in another shape."""
    return isinstance(part, nn.Parameter) or (
        isinstance(part, Tensor) and isinstance(part._base, nn.Parameter)
    )


def _ratio(of: Tensor, to: Tensor) -> Tensor:
    """Their ratio as a constant, zero where `to` is next to nothing."""
    of, to = of.detach(), to.detach()
    sound = to.abs() > SMALLEST * _root_mean_square(to)
    return torch.where(sound, of / torch.where(sound, to, torch.ones_like(to)), torch.zeros_like(of))


def _root_mean_square(values: Tensor) -> Tensor:
    return values.detach().square().mean().sqrt()
