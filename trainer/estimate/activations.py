"""What a forward pass keeps for the backward pass, counted from lengths and sizes."""

from typing import Any, NamedTuple

from transpooler.model.architecture import Architecture
from transpooler.model.compressor.architecture import CompressorArchitecture
from transpooler.model.layers.context_parallel import Part
from transpooler.model.layers.loss import PIECE_TARGETS
from transpooler.model.layers.streaming import PIECE_TOKENS
from transpooler.trainer.config.engine import EngineConfig
from transpooler.trainer.estimate.products import EVERYTHING, Trained
from transpooler.trainer.estimate.walks import stages_by_layer

CHUNKS_KEEP = 3
"""Vectors a token that chunks keep between two poolings: the hidden state, its gradient, what the pooler weighs."""


class Kept(NamedTuple):
    """Bytes that a layer keeps."""

    whole: int
    least: int
    """Of its input alone."""
    in_encoder: bool


class Sizes(NamedTuple):
    """A rank's micro batch of documents of equal length."""

    documents: int
    size: int
    """Bytes of an element."""
    ranks: int
    block: int | None

    def shared(self, length: int) -> int:
        """Tokens of all documents that a rank has before the last pooling, if each has `length`."""
        if self.ranks == 1 or self.block is None:
            return self.documents * length
        slices = (
            Part(self.ranks - 1, self.ranks, self.block).tokens(length, document) for document in range(self.documents)
        )
        return sum(each.stop - each.start for each in slices)

    @property
    def decoded(self) -> int:
        """Documents that a rank has after it."""
        return -(-self.documents // self.ranks)


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
    one layer at a time; with chunks, hidden states between poolings and one chunk of all layers between two. Layers
    below all that is trained keep nothing. The logits are kept twice, once in float32; with
    activation checkpointing those of one piece. Of a schedule with several
    budgets the largest is counted. Ranks that share documents each keep their blocks, and documents after the last
    pooling.
    """
    size = 4 if engine.precision == "fp32" else 2
    sizes = Sizes(engine.micro_batch_size, size, engine.context_parallel_size, model.block_size)
    if isinstance(model, CompressorArchitecture):
        layers, width, dropout = *_compressor_layers(model, sizes, source_tokens, target_tokens, trained), False
    else:
        layers, width, dropout = (
            *_seq2seq_layers(model, sizes, source_tokens, target_tokens, trained),
            model.dropout > 0,
        )
    kept, logits = sum(layer.whole for layer in layers), target_tokens
    if engine.activation_checkpointing == "chunks":
        share = min(1.0, PIECE_TOKENS / max(1, sizes.shared(source_tokens)))
        encoder = [layer for layer in layers if layer.in_encoder]
        kept -= int((1 - share) * sum(layer.whole for layer in encoder))
        kept += CHUNKS_KEEP * max((layer.least for layer in encoder), default=0)
    elif engine.activation_checkpointing != "none":
        inputs = 0 if engine.checkpoint_in_cpu else sum(layer.least for layer in layers)
        kept = inputs + max((layer.whole for layer in layers), default=0)
        if not isinstance(model, CompressorArchitecture):
            logits = min(target_tokens, PIECE_TARGETS)
    targets = sizes.decoded * target_tokens
    embeddings = (sizes.shared(source_tokens) + targets) * width * (size + (1 if dropout else 0))
    return kept + sizes.decoded * logits * vocab_size * (4 + size) + embeddings


def _seq2seq_layers(
    model: Architecture, sizes: Sizes, source_tokens: int, target_tokens: int, trained: Trained
) -> tuple[list[Kept], int]:
    """The layers of the encoder-decoder, and its width."""
    width, size = model.d_model, sizes.size
    inner = model.ffn_dim * (4 if model.gated else 1 if model.activation == "relu" else 2)
    masks = 2 * width if model.dropout else 0
    full = (8 * width + inner) * size + masks
    layers: list[Kept] = []
    length = source_tokens
    stages = stages_by_layer(model)
    flows = trained.any_in("model.encoder.embed_tokens") or trained.any_in("model.encoder.embedder")
    last = max(stages, default=0)
    for layer in range(1, model.encoder_layers + 1):
        tokens = sizes.shared(length) if layer <= last else sizes.decoded * length
        if flows := flows or trained.any_in(f"model.encoder.layers.{layer - 1}"):
            layers.append(Kept(tokens * full, tokens * width * size, in_encoder=True))
        if (stage := stages.get(layer)) is not None:
            if flows := flows or trained.any_in(f"model.encoder.poolers.{layer}"):
                layers.append(Kept(tokens * (width * size + 16), tokens * width * size, in_encoder=False))
            length = stage.slots(length)
    cross = (5 * width * size + (width if model.dropout else 0)) * target_tokens + 2 * width * size * length
    flows = flows or trained.any_in("model.decoder.embed_tokens") or trained.any_in("model.decoder.embedder")
    for layer in range(model.decoder_layers):
        if flows := flows or trained.any_in(f"model.decoder.layers.{layer}"):
            whole, least = target_tokens * full + cross, target_tokens * width * size
            layers.append(Kept(sizes.decoded * whole, sizes.decoded * least, in_encoder=False))
    return layers, width


def _compressor_layers(
    model: CompressorArchitecture, sizes: Sizes, source_tokens: int, target_tokens: int, trained: Trained
) -> tuple[list[Kept], int]:
    """The layers of the hosted encoder and of the reader, and the encoder's width. Their networks have gates."""
    layers: list[Kept] = []
    length = source_tokens
    stages = stages_by_layer(model)

    def add(config: dict[str, Any], tokens: int, in_encoder: bool) -> None:
        inner = 8 * config["hidden_size"] + 4 * config["intermediate_size"]
        layers.append(Kept(tokens * inner * sizes.size, tokens * config["hidden_size"] * sizes.size, in_encoder))

    last = max(stages, default=0)
    flows = trained.any_in("encoder.stock.embed_tokens")
    for layer in range(model.num_layers + 1):
        if layer and (flows := flows or trained.any_in(f"encoder.stock.layers.{layer - 1}")):
            tokens = sizes.shared(length) if layer <= last else sizes.decoded * length
            add(model.encoder, tokens, in_encoder=True)
        if (stage := stages.get(layer)) is not None:
            flows = flows or trained.any_in(f"encoder.poolers.{layer}")
            length = stage.slots(length)
    flows = flows or trained.any_in("encoder.adapter") or trained.any_in("reader.model.embed_tokens")
    for layer in range(model.reader["num_hidden_layers"]):
        if flows := flows or trained.any_in(f"reader.model.layers.{layer}"):
            add(model.reader, sizes.decoded * (length + target_tokens), in_encoder=False)
    return layers, model.encoder["hidden_size"]
