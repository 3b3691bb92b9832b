"""Text transformers from `transformers` configurations: encoders and encoder-decoders."""

from __future__ import annotations

from typing import Any

import transformers as hf

from tests.zoo.blocks import Select
from tests.zoo.registry import Model, entry, token_model

VOCAB = 90
_ENCODER = {
    "vocab_size": VOCAB,
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 104,
    "max_position_embeddings": 40,
    "type_vocab_size": 2,
    "num_labels": 6,
}


def _classifier(kind: str, attention: str = "eager", *, mask: bool = True, **changes: Any) -> Model:
    config = getattr(hf, f"{kind}Config")(**{**_ENCODER, **changes}, attn_implementation=attention)
    model = getattr(hf, f"{kind}ForSequenceClassification")(config)
    names = ("input_ids", "attention_mask") if mask else ("input_ids",)
    return token_model(Select(model, names, ("logits",)), VOCAB, mask=mask)


@entry("text", "transformer", "encoder")
def bert() -> Model:
    return _classifier("Bert")
