"""What a zoo entry is: a tiny seeded torch module with its example inputs, and the table that names it."""

from __future__ import annotations

import inspect
import warnings
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from tests.zoo.weights import randomize

Fill = Literal["normal", "ids", "ones", "unit"]

BATCH = 2
OTHER_BATCH = 5


@dataclass(frozen=True)
class Input:
    """One input of a model. A dimension given by name is dynamic; its sizes stand in the Model.

    `fill` says what the examples hold: standard normal floats, integers below `high`, int64 ones (a mask),
    or floats in [0, 1).
    """

    name: str
    shape: tuple[int | str, ...]
    fill: Fill = "normal"
    high: int = 0

    def sample(self, sizes: Mapping[str, int], generator: torch.Generator) -> Tensor:
        shape = [sizes[d] if isinstance(d, str) else d for d in self.shape]
        if self.fill == "ids":
            return torch.randint(0, self.high, shape, generator=generator)
        if self.fill == "ones":
            return torch.ones(shape, dtype=torch.int64)
        if self.fill == "unit":
            return torch.rand(shape, generator=generator)
        return torch.randn(shape, generator=generator)


@dataclass
class Model:
    """A torch module in eval mode with its inputs.

    `sizes` gives the value of every named dimension in the example inputs, `other_sizes` other values at
    which the module works too (empty: only the batch is free). `batch` is always a named dimension.
    """

    module: nn.Module
    inputs: tuple[Input, ...]
    sizes: dict[str, int] = field(default_factory=dict)
    other_sizes: dict[str, int] = field(default_factory=dict)

    @property
    def input_names(self) -> tuple[str, ...]:
        return tuple(i.name for i in self.inputs)

    @property
    def dynamic_axes(self) -> dict[str, dict[int, str]]:
        """Input name -> axis -> name of the dimension, for the axes that may change size."""
        return {
            i.name: {axis: d for axis, d in enumerate(i.shape) if isinstance(d, str)} for i in self.inputs
        }

    def example(self, *, batch: int = BATCH, other_size: bool = False, seed: int = 0) -> tuple[Tensor, ...]:
        """Inputs at the given batch, and at `other_sizes` when asked. Same arguments, same values."""
        sizes = {**self.sizes, **(self.other_sizes if other_size else {}), "batch": batch}
        generator = torch.Generator().manual_seed(seed)
        return tuple(i.sample(sizes, generator) for i in self.inputs)

    def alternatives(self) -> dict[str, tuple[Tensor, ...]]:
        """Other inputs that the module accepts: "batch", and "size" where a dimension besides it is free."""
        found = {"batch": self.example(batch=OTHER_BATCH, seed=1)}
        if self.other_sizes:
            found["size"] = self.example(other_size=True, seed=2)
        return found

    def run(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The module's outputs as a flat tuple, without gradients."""
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = self.module(*inputs)
        return (result,) if isinstance(result, Tensor) else tuple(result)


@dataclass(frozen=True)
class Entry:
    """A named architecture. `build` makes it anew each time, with the same weights; `source` is its file."""

    name: str
    make: Callable[[], Model]
    tags: frozenset[str]

    @property
    def source(self) -> Path:
        return Path(inspect.getfile(self.make))

    def build(self) -> Model:
        """The model in eval mode, with seeded weights of which no tensor is all zeros or ones."""
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.manual_seed(zlib.crc32(self.name.encode()))
            model = self.make()
            model.module.eval()
            randomize(model.module)
        return model


ZOO: dict[str, Entry] = {}


def entry(*tags: str) -> Callable[[Callable[[], Model]], Callable[[], Model]]:
    """Adds the decorated function, under its own name, to the zoo."""

    def register(make: Callable[[], Model]) -> Callable[[], Model]:
        name = make.__name__
        if name in ZOO:
            raise ValueError(f"two zoo entries are named '{name}': rename one")
        ZOO[name] = Entry(name, make, frozenset(tags))
        return make

    return register


def image_model(module: nn.Module, size: int = 32, other: int = 0, *, channels: int = 3) -> Model:
    """A model of one square image input; `other` is another side it accepts, 0 where the side is fixed."""
    if not other:
        return Model(module, (Input("image", ("batch", channels, size, size)),))
    return Model(
        module,
        (Input("image", ("batch", channels, "height", "width")),),
        {"height": size, "width": size},
        {"height": other, "width": size},
    )


def token_model(
    module: nn.Module, vocab: int, length: int = 10, other: int = 7, *, mask: bool = False
) -> Model:
    """A model of token ids (batch, sequence), with an attention mask of the same shape when asked."""
    inputs = [Input("input_ids", ("batch", "sequence"), "ids", vocab)]
    if mask:
        inputs.append(Input("attention_mask", ("batch", "sequence"), "ones"))
    return Model(module, tuple(inputs), {"sequence": length}, {"sequence": other})
