"""Decoder-only language models, from `transformers` configurations."""

from __future__ import annotations

from typing import Any

from tests.zoo.blocks import Select, made
from tests.zoo.registry import Model, entry, token_model

VOCAB = 90
_COMMON = {"vocab_size": VOCAB, "use_cache": False, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
_LLAMA = {
    **_COMMON,
    "hidden_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "intermediate_size": 104,
    "max_position_embeddings": 64,
}

_BATCHED = {"experts_implementation": "batched_mm"}
"""Experts by gathering their stacked weights per token; the default has operators that no exporter knows."""


def _causal(kind: str, settings: dict[str, Any], attention: str = "eager", *, mask: bool = True) -> Model:
    """Logits from ids, and from a mask of ones when asked: without it some exporters meet other operators."""
    config = made(f"{kind}Config", **settings, attn_implementation=attention)
    model = made("GPT2LMHeadModel" if kind == "GPT2" else f"{kind}ForCausalLM", config)
    names = ("input_ids", "attention_mask") if mask else ("input_ids",)
    return token_model(Select(model, names, ("logits",), use_cache=False), VOCAB, mask=mask)


_GPT2 = {**_COMMON, "n_embd": 48, "n_layer": 2, "n_head": 4, "n_inner": 104, "n_positions": 40}


@entry("text", "transformer", "decoder", "tied")
def gpt2() -> Model:
    return _causal("GPT2", _GPT2)


@entry("text", "transformer", "decoder", "tied", "sdpa")
def gpt2_sdpa() -> Model:
    return _causal("GPT2", _GPT2, "sdpa", mask=False)


@entry("text", "transformer", "decoder", "tied")
def gpt_neo() -> Model:
    size = {"hidden_size": 48, "num_layers": 2, "num_heads": 4, "intermediate_size": 100}
    kinds = [[["global", "local"], 1]]
    settings = {**_COMMON, **size, "attention_types": kinds, "window_size": 8, "max_position_embeddings": 40}
    return _causal("GPTNeo", settings)


@entry("text", "transformer", "decoder", "tied")
def opt() -> Model:
    """Narrower embeddings than the hidden width, with a projection on both ends."""
    size = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 108}
    return _causal("OPT", {**_COMMON, **size, "word_embed_proj_dim": 28, "max_position_embeddings": 40})


@entry("text", "transformer", "decoder", "tied")
def bloom() -> Model:
    """ALiBi biases instead of positions; queries, keys and values interleaved per head."""
    return _causal("Bloom", {**_COMMON, "hidden_size": 48, "n_layer": 2, "n_head": 4})


@entry("text", "transformer", "decoder", "tied")
def falcon() -> Model:
    """Multi-query: one key and value head; attention and MLP in parallel."""
    size = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_hidden_size": 100}
    return _causal("Falcon", {**_COMMON, **size, "multi_query": True, "parallel_attn": True})


@entry("text", "transformer", "decoder", "gqa")
def llama_gqa() -> Model:
    return _causal("Llama", _LLAMA)


@entry("text", "transformer", "decoder", "gqa", "sdpa")
def llama_sdpa() -> Model:
    return _causal("Llama", _LLAMA, "sdpa")


@entry("text", "transformer", "decoder", "gqa")
def mistral() -> Model:
    return _causal("Mistral", {**_LLAMA, "sliding_window": 6})


@entry("text", "transformer", "decoder", "gqa")
def qwen2() -> Model:
    """Biases on queries, keys and values only."""
    return _causal("Qwen2", {**_LLAMA, "hidden_size": 48})


@entry("text", "transformer", "decoder", "gqa")
def qwen3() -> Model:
    """RMSNorm over each head's queries and keys."""
    return _causal("Qwen3", _LLAMA)


@entry("text", "transformer", "decoder", "gqa", "tied")
def gemma() -> Model:
    """Norm weights are offsets from one; the embedding is scaled and tied."""
    return _causal("Gemma", _LLAMA)


@entry("text", "transformer", "decoder", "gqa", "tied")
def gemma2() -> Model:
    """Norms on both sides of each block, soft-capped scores and logits."""
    return _causal("Gemma2", {**_LLAMA, "query_pre_attn_scalar": 12, "sliding_window": 6})


@entry("text", "transformer", "decoder")
def phi() -> Model:
    """Rotary embedding on half of each head; attention and MLP in parallel."""
    settings = {k: v for k, v in _LLAMA.items() if k not in ("head_dim", "num_key_value_heads")}
    return _causal("Phi", {**settings, "hidden_size": 48, "partial_rotary_factor": 0.5})


@entry("text", "transformer", "decoder", "gqa")
def phi3() -> Model:
    """Fused query-key-value and fused gate-up projections."""
    return _causal("Phi3", {**_LLAMA, "hidden_size": 48})


@entry("text", "transformer", "decoder", "gqa")
def stablelm() -> Model:
    settings = {k: v for k, v in _LLAMA.items() if k != "head_dim"}
    return _causal("StableLm", {**settings, "hidden_size": 64, "partial_rotary_factor": 0.25})


@entry("text", "transformer", "decoder", "gqa", "moe")
def mixtral() -> Model:
    moe = {"num_local_experts": 6, "num_experts_per_tok": 2, "intermediate_size": 52, **_BATCHED}
    return _causal("Mixtral", {**_LLAMA, **moe})


@entry("text", "transformer", "decoder", "gqa", "moe")
def qwen_moe() -> Model:
    """Routed experts beside a gated shared one."""
    settings = {k: v for k, v in _LLAMA.items() if k != "head_dim"}
    moe = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 44, **_BATCHED}
    shared = {"shared_expert_intermediate_size": 60, "hidden_size": 48}
    return _causal("Qwen2Moe", {**settings, **moe, **shared})


@entry("text", "transformer", "decoder", "moe")
def deepseek_v3() -> Model:
    """Experts in groups, scored by Sigmoid, chosen by a corrected score; attention through a latent."""
    moe = {"n_routed_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 44, **_BATCHED}
    routing = {"n_group": 2, "topk_group": 1, "first_k_dense_replace": 1, "n_shared_experts": 1}
    latent = {"q_lora_rank": 20, "kv_lora_rank": 24, "qk_rope_head_dim": 8, "qk_nope_head_dim": 12}
    heads = {"v_head_dim": 12, "num_key_value_heads": 4}
    settings = {k: v for k, v in _LLAMA.items() if k != "head_dim"}
    return _causal("DeepseekV3", {**settings, **moe, **routing, **latent, **heads})


@entry("text", "transformer", "decoder", "gqa", "moe")
def gpt_oss() -> Model:
    """The chosen scores are normalised, not all; gate and value alternate; experts have biases."""
    moe = {"num_local_experts": 6, "num_experts_per_tok": 2, "intermediate_size": 44, **_BATCHED}
    layers = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 8}
    rope = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}
    return _causal("GptOss", {**_LLAMA, **moe, **layers, **rope})


@entry("text", "transformer", "decoder", "gqa", "moe")
def qwen3_moe() -> Model:
    """Queries and keys are normalised per head; the chosen scores sum to one."""
    moe = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 44, **_BATCHED}
    return _causal("Qwen3Moe", {**_LLAMA, **moe, "norm_topk_prob": True})


@entry("text", "recurrent", "decoder", "tied")
def mamba() -> Model:
    size = {"hidden_size": 36, "state_size": 6, "num_hidden_layers": 2, "expand": 2, "time_step_rank": 10}
    return _causal("Mamba", {**_COMMON, **size, "conv_kernel": 4}, mask=False)


@entry("text", "recurrent", "decoder")
def rwkv() -> Model:
    size = {"hidden_size": 44, "attention_hidden_size": 44, "intermediate_size": 108, "num_hidden_layers": 2}
    return _causal("Rwkv", {**_COMMON, **size, "context_length": 32}, mask=False)
