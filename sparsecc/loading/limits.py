"""What a model file may demand of us before it is refused."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Bounds on a model from outside. Every refusal over one of them names the field to raise.

    `file_bytes` bounds the model file (protobuf itself ends at 2 GiB), `external_bytes` the sum of its
    external data, `nodes` the nodes after inlining every function, `depth` graphs inside graphs,
    `attribute_bytes` and `attribute_values` one attribute, `dense_bytes` the sparse tensors made dense.
    With `linked_data`, external data may be a link into the blob store of the download cache that holds the
    model.
    """

    file_bytes: int = (1 << 31) - 1
    external_bytes: int = 256 << 30
    nodes: int = 1_000_000
    depth: int = 100
    attribute_bytes: int = 64 << 20
    attribute_values: int = 10_000_000
    dense_bytes: int = 64 << 20
    linked_data: bool = False


DEFAULT_LIMITS = Limits()
"""What holds unless the user raises it."""
