"""Decoder-only language models from `transformers` configurations."""

from __future__ import annotations

from typing import Any

import transformers as hf

from tests.zoo.blocks import Select
from tests.zoo.registry import Model, entry, token_model

VOCAB = 90
_LLAMA = {
    "vocab_size": VOCAB,
    "hidden_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "intermediate_size": 104,
    "max_position_embeddings": 64,
    "use_cache": False,
    "pad_token_id": None,
}


def _causal(kind: str, attention: str = "eager", *, mask: bool = True, **settings: Any) -> Model:
    config = getattr(hf, f"{kind}Config")(**settings, attn_implementation=attention)
    model = getattr(hf, f"{kind}ForCausalLM", None) or getattr(hf, f"{kind}LMHeadModel")
    names = ("input_ids", "attention_mask") if mask else ("input_ids",)
    return token_model(Select(model(config), names, ("logits",), use_cache=False), VOCAB, mask=mask)


@entry("text", "transformer", "decoder")
def gpt2() -> Model:
    size = {"n_embd": 48, "n_layer": 2, "n_head": 4, "n_inner": 104, "n_positions": 40}
    return _causal("GPT2", vocab_size=VOCAB, use_cache=False, **size)


@entry("text", "transformer", "decoder", "gqa")
def llama_gqa() -> Model:
    return _causal("Llama", **_LLAMA)
