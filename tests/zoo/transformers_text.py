"""Text encoders and encoder-decoders, from `transformers` configurations."""

from __future__ import annotations

from typing import Any

from tests.zoo.blocks import Select, made
from tests.zoo.registry import Input, Model, entry, token_model

VOCAB = 90
_ENCODER = {
    "vocab_size": VOCAB,
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 104,
    "max_position_embeddings": 40,
    "num_labels": 6,
}


def _classifier(kind: str, changes: dict[str, Any], attention: str = "eager") -> Model:
    config = made(f"{kind}Config", **{**_ENCODER, **changes}, attn_implementation=attention)
    model = made(f"{kind}ForSequenceClassification", config)
    return token_model(Select(model, ("input_ids", "attention_mask"), ("logits",)), VOCAB, mask=True)


@entry("text", "transformer", "encoder")
def bert() -> Model:
    return _classifier("Bert", {})


@entry("text", "transformer", "encoder", "sdpa")
def bert_sdpa() -> Model:
    return _classifier("Bert", {}, "sdpa")


@entry("text", "transformer", "encoder", "tied")
def bert_masked_lm() -> Model:
    """The output head is the embedding, transposed."""
    model = made("BertForMaskedLM", made("BertConfig", **_ENCODER, attn_implementation="eager"))
    return token_model(Select(model, ("input_ids", "attention_mask"), ("logits",)), VOCAB, mask=True)


@entry("text", "transformer", "encoder")
def roberta() -> Model:
    return _classifier("Roberta", {"pad_token_id": 0})


@entry("text", "transformer", "encoder")
def distilbert() -> Model:
    size = {"dim": 48, "n_layers": 2, "n_heads": 4, "hidden_dim": 104, "vocab_size": VOCAB, "num_labels": 6}
    config = made("DistilBertConfig", **size, max_position_embeddings=40, attn_implementation="eager")
    model = made("DistilBertForSequenceClassification", config)
    return token_model(Select(model, ("input_ids", "attention_mask"), ("logits",)), VOCAB, mask=True)


@entry("text", "transformer", "encoder", "shared")
def albert() -> Model:
    """One layer's weights used for both layers; a narrow embedding is widened first."""
    return _classifier("Albert", {"embedding_size": 20})


@entry("text", "transformer", "encoder")
def deberta() -> Model:
    """Disentangled attention: content to position and back, over relative positions."""
    return _classifier("DebertaV2", {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]})


@entry("text", "transformer", "encoder")
def electra() -> Model:
    return _classifier("Electra", {"embedding_size": 28})


@entry("text", "transformer", "encoder")
def mpnet() -> Model:
    return _classifier("MPNet", {"relative_attention_num_buckets": 32})


_T5 = {
    "vocab_size": VOCAB,
    "d_model": 44,
    "d_kv": 12,
    "d_ff": 108,
    "num_layers": 2,
    "num_heads": 4,
    "relative_attention_num_buckets": 10,
    "relative_attention_max_distance": 16,
    "attn_implementation": "eager",
    "use_cache": False,
}


def _translator(model: Any) -> Model:
    """An encoder-decoder over source and target ids; both lengths are free."""
    inputs = (
        Input("input_ids", ("batch", "source"), "ids", VOCAB),
        Input("decoder_input_ids", ("batch", "target"), "ids", VOCAB),
    )
    module = Select(model, ("input_ids", "decoder_input_ids"), ("logits",), use_cache=False)
    return Model(module, inputs, {"source": 10, "target": 7}, {"source": 13, "target": 6})


@entry("text", "transformer", "encoder")
def t5_encoder() -> Model:
    model = made("T5EncoderModel", made("T5Config", **_T5))
    return token_model(Select(model, ("input_ids",), ("last_hidden_state",)), VOCAB)


@entry("text", "transformer", "encoder-decoder")
def t5() -> Model:
    return _translator(
        made("T5ForConditionalGeneration", made("T5Config", **_T5, feed_forward_proj="gated-gelu"))
    )


@entry("text", "transformer", "encoder-decoder", "tied")
def bart() -> Model:
    config = made(
        "BartConfig",
        vocab_size=VOCAB,
        d_model=48,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=100,
        decoder_ffn_dim=108,
        max_position_embeddings=40,
        attn_implementation="eager",
    )
    return _translator(made("BartForConditionalGeneration", config))
