"""What a forward pass keeps for the backward pass, counted from lengths and sizes."""

from typing import Any

from transpooler.model.architecture import Architecture
from transpooler.model.compressor.architecture import CompressorArchitecture
from transpooler.trainer.config.engine import EngineConfig
from transpooler.trainer.estimate.products import EVERYTHING, Trained
from transpooler.trainer.estimate.walks import stages_by_layer


def activation_bytes(
    model: Architecture | CompressorArchitecture,
    vocab_size: int,
    engine: EngineConfig,
    source_tokens: int,
    target_tokens: int,
    trained: Trained = EVERYTHING,
) -> int:
    """Bytes that one micro batch of documents of these lengths keeps for its backward pass, with fused attention.

    A layer keeps eight vectors a token (its input, q, k, v, the attention's output, three more around the two norms)
    and the inner width of its feed-forward network: once with ReLU, twice with GELU, four times with a gate. Dropout
    adds masks of one byte an element. With activation checkpointing a layer keeps only its input; the rest is kept for
    one layer at a time. Layers below all that is trained keep nothing. The logits are kept twice, once in float32.
    Of a schedule with several budgets the largest is counted.
    """
    size = 4 if engine.precision == "fp32" else 2
    if isinstance(model, CompressorArchitecture):
        layers, width, dropout = *_compressor_layers(model, size, source_tokens, target_tokens, trained), False
    else:
        layers, width, dropout = *_seq2seq_layers(model, size, source_tokens, target_tokens, trained), model.dropout > 0
    kept = sum(whole for whole, _ in layers)
    if engine.activation_checkpointing != "none":
        inputs = 0 if engine.checkpoint_in_cpu else sum(least for _, least in layers)
        kept = inputs + max((whole for whole, _ in layers), default=0)
    logits = target_tokens * vocab_size * (4 + size)
    embeddings = (source_tokens + target_tokens) * width * (size + (1 if dropout else 0))
    return engine.micro_batch_size * (kept + logits + embeddings)


Layers = list[tuple[int, int]]
"""(bytes that a layer keeps, bytes of its input alone)."""


def _seq2seq_layers(
    model: Architecture, size: int, source_tokens: int, target_tokens: int, trained: Trained
) -> tuple[Layers, int]:
    """The layers of the encoder-decoder, and its width; `size` is that of an element."""
    width = model.d_model
    inner = model.ffn_dim * (4 if model.gated else 1 if model.activation == "relu" else 2)
    masks = 2 * width if model.dropout else 0
    full = (8 * width + inner) * size + masks
    layers: Layers = []
    length = source_tokens
    stages = stages_by_layer(model)
    flows = trained.any_in("model.encoder.embed_tokens") or trained.any_in("model.encoder.embedder")
    for layer in range(1, model.encoder_layers + 1):
        if flows := flows or trained.any_in(f"model.encoder.layers.{layer - 1}"):
            layers.append((length * full, length * width * size))
        if (stage := stages.get(layer)) is not None:
            if flows := flows or trained.any_in(f"model.encoder.poolers.{layer}"):
                layers.append((length * (width * size + 16), length * width * size))
            length = stage.slots(length)
    cross = (5 * width * size + (width if model.dropout else 0)) * target_tokens + 2 * width * size * length
    flows = flows or trained.any_in("model.decoder.embed_tokens") or trained.any_in("model.decoder.embedder")
    for layer in range(model.decoder_layers):
        if flows := flows or trained.any_in(f"model.decoder.layers.{layer}"):
            layers.append((target_tokens * full + cross, target_tokens * width * size))
    return layers, width


def _compressor_layers(
    model: CompressorArchitecture, size: int, source_tokens: int, target_tokens: int, trained: Trained
) -> tuple[Layers, int]:
    """The layers of the hosted encoder and of the reader, and the encoder's width. Their networks have gates."""
    layers: Layers = []
    length = source_tokens
    stages = stages_by_layer(model)

    def add(config: dict[str, Any], tokens: int) -> None:
        inner = 8 * config["hidden_size"] + 4 * config["intermediate_size"]
        layers.append((tokens * inner * size, tokens * config["hidden_size"] * size))

    flows = trained.any_in("encoder.stock.embed_tokens")
    for layer in range(model.num_layers + 1):
        if layer and (flows := flows or trained.any_in(f"encoder.stock.layers.{layer - 1}")):
            add(model.encoder, length)
        if (stage := stages.get(layer)) is not None:
            flows = flows or trained.any_in(f"encoder.poolers.{layer}")
            length = stage.slots(length)
    flows = flows or trained.any_in("encoder.adapter") or trained.any_in("reader.model.embed_tokens")
    for layer in range(model.reader["num_hidden_layers"]):
        if flows := flows or trained.any_in(f"reader.model.layers.{layer}"):
            add(model.reader, length + target_tokens)
    return layers, model.encoder["hidden_size"]
