"""What torch-pruning has to be told about attention: the arguments that its examples write by hand per model.

A row gives the arguments for `BasePruner` and what the module's own attributes must become afterwards, as in the
`examples/transformers` of torch-pruning 1.6.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

Told = tuple[dict[str, Any], Callable[[], None]]
Recipe = Callable[[Any, float], Told]


def _attention(module: nn.Module, kind: str) -> list[Any]:
    return [m for m in module.modules() if type(m).__name__ == kind]


def bert(module: nn.Module, ratio: float) -> Told:
    """Heads stay, their widths shrink alike; the sizes that the attention keeps are mended."""
    layers = _attention(module, "BertSelfAttention")
    heads = {p: m.num_attention_heads for m in layers for p in (m.query, m.key, m.value)}

    def mend() -> None:
        for m in layers:
            m.all_head_size = m.query.out_features
            m.attention_head_size = m.query.out_features // m.num_attention_heads

    return {"num_heads": heads}, mend


def vit(module: nn.Module, ratio: float) -> Told:
    """As BERT; the class token and the positions are no module's weights and must be named."""
    layers = _attention(module, "ViTAttention")
    heads = {p: m.num_attention_heads for m in layers for p in (m.q_proj, m.k_proj, m.v_proj)}
    embeddings = next(m for m in module.modules() if type(m).__name__ == "ViTEmbeddings")
    loose = [(embeddings.cls_token, 2), (embeddings.position_embeddings, 2)]

    def mend() -> None:
        for m in layers:
            m.head_dim = m.q_proj.out_features // m.num_attention_heads

    return {"num_heads": heads, "unwrapped_parameters": loose}, mend


def fused_vit(module: Any, ratio: float) -> Told:
    """One layer gives queries, keys and values: three times the heads."""
    layers = _attention(module, "FusedAttention")
    heads = {m.qkv: m.heads for m in layers}
    loose = [(module.token, 2), (module.position, 2)]

    def mend() -> None:
        for m in layers:
            m.size = m.qkv.out_features // (3 * m.heads)

    return {"num_heads": heads, "unwrapped_parameters": loose}, mend


def llama(module: nn.Module, ratio: float) -> Told:
    """Whole heads go, since rotary positions fix their width."""
    layers = _attention(module, "LlamaAttention")
    heads = {m.q_proj: m.q_proj.out_features // m.head_dim for m in layers}
    heads |= {p: p.out_features // m.head_dim for m in layers for p in (m.k_proj, m.v_proj)}

    def mend() -> None:
        for m in layers:
            m.num_key_value_groups = m.q_proj.out_features // m.k_proj.out_features

    told = {"prune_num_heads": True, "prune_head_dims": False, "head_pruning_ratio": ratio}
    return {"num_heads": heads, **told}, mend


TOLD: Mapping[str, Recipe] = {
    "vit": vit,
    "vit_fused_unbind": fused_vit,
    "vit_fused_chunk": fused_vit,
    "bert": bert,
    "llama_gqa": llama,
}
