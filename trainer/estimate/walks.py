"""The matrix products of each kind of model, layer by layer, under the names of their weights."""

from typing import Any

from transpooler.model.architecture import Architecture
from transpooler.model.compressor.architecture import CompressorArchitecture
from transpooler.model.ops.operators import OPERATORS
from transpooler.model.ops.schedule import PoolingStage, schedule_that_keeps
from transpooler.trainer.estimate.products import Products


def stages_by_layer(model: Architecture | CompressorArchitecture) -> dict[int, PoolingStage]:
    """The stages of a schedule by the layer after which they pool, at the largest of its budgets."""
    return {stage.after_layer: stage for stage in schedule_that_keeps(model.pooling, None)}


def walk_seq2seq(count: Products, model: Architecture, vocab_size: int, source_tokens: int, target_tokens: int) -> None:
    """Count an encoder-decoder; its causal attention in full, as torch's counter does."""
    trained, name = count.trained, "model.encoder"
    stages = stages_by_layer(model)
    length = source_tokens
    flows = trained.any_in(f"{name}.embed_tokens") or trained.any_in(f"{name}.embedder")
    for layer in range(1, model.encoder_layers + 1):
        own = f"{name}.layers.{layer - 1}"
        pairs, bias = _count_pairs(length, model.block_size), trained.any_in(f"{name}.relative_bias")
        if model.stagger_blocks and layer % 2 == 0:
            assert model.block_size is not None
            first = min(length, model.block_size - model.block_size // 2)
            pairs = first**2 + _count_pairs(length - first, model.block_size)
        flows = _attend(count, f"{own}.attention", model, (length, length), pairs, flows, flows, bias)
        flows = _feed_forward(count, own, model, length, flows)
        if (stage := stages.get(layer)) is not None:
            flows = _pool(count, f"{name}.poolers.{layer}", stage, length, model.d_model, model.d_model, flows)
            length = stage.slots(length)
    memory = flows or trained.any_in(f"{name}.final_norm")
    tokens, name = target_tokens, "model.decoder"
    flows = trained.any_in(f"{name}.embed_tokens") or trained.any_in(f"{name}.embedder")
    for layer in range(model.decoder_layers):
        own, bias = f"{name}.layers.{layer}", trained.any_in(f"{name}.relative_bias")
        flows = _attend(count, f"{own}.self_attention", model, (tokens, tokens), tokens**2, flows, flows, bias)
        flows = _attend(count, f"{own}.cross_attention", model, (tokens, length), tokens * length, flows, memory)
        flows = _feed_forward(count, own, model, tokens, flows)
    flows = flows or trained.any_in(f"{name}.final_norm")
    count.linear("lm_head", tokens, model.d_model, vocab_size, flows)


def walk_compressor(
    count: Products, model: CompressorArchitecture, vocab_size: int, source_tokens: int, target_tokens: int
) -> None:
    """Count a compressor. The prompt's few tokens are not counted."""
    trained, width, out = count.trained, model.encoder["hidden_size"], model.reader["hidden_size"]
    stages = stages_by_layer(model)
    length = source_tokens
    embedded = flows = trained.any_in("encoder.stock.embed_tokens")
    for layer in range(model.num_layers + 1):
        if layer:
            pairs = _count_pairs(length, model.block_size)
            flows = _stock_layer(count, f"encoder.stock.layers.{layer - 1}", model.encoder, length, pairs, flows)
        if (stage := stages.get(layer)) is not None:
            carried = width if model.carry_embeddings else 0
            flows = _pool(count, f"encoder.poolers.{layer}", stage, length, width, width + carried, flows)
            embedded = embedded or flows  # whatever the scores follow, what is carried follows, too
            length = stage.slots(length)
    flows = flows or trained.any_in("encoder.stock.norm") or trained.any_in("encoder.adapter.norm")
    flows = count.linear("encoder.adapter.fc_in", length, width, out, flows)
    flows = count.linear("encoder.adapter.fc_out", length, out, out, flows)
    flows = flows or (embedded and model.carry_embeddings) or trained.any_in("reader.model.embed_tokens")
    tokens = length + target_tokens - 1
    for layer in range(model.reader["num_hidden_layers"]):
        flows = _stock_layer(count, f"reader.model.layers.{layer}", model.reader, tokens, tokens**2, flows)
    flows = flows or trained.any_in("reader.model.norm")
    count.linear("reader.lm_head", target_tokens, out, vocab_size, flows)


def _attend(
    count: Products,
    name: str,
    model: Architecture,
    tokens: tuple[int, int],
    pairs: int,
    flows: bool,
    memory: bool,
    bias: bool = False,
) -> bool:
    """An attention with its residual; `tokens` that ask and that are looked at, `memory` whether gradients flow to the
    latter."""
    owner, _, kind = name.rpartition(".")
    norm = count.trained.any_in(f"{owner}.{kind.replace('_attention', '')}_residual")
    read = flows or (norm and model.norm == "pre")
    looked_at = memory if kind == "cross_attention" else read
    heads, width = model.num_heads * model.head_width, model.d_model
    keys = (model.kv_heads or model.num_heads) * model.head_width
    q = count.linear(f"{name}.q_proj", tokens[0], width, heads, read)
    k, v = (count.linear(f"{name}.{part}_proj", tokens[1], width, keys, looked_at) for part in "kv")
    out = count.linear(f"{name}.out_proj", tokens[0], heads, width, count.attention(pairs, heads, q, k, v, bias))
    return flows or out or norm


def _feed_forward(count: Products, owner: str, model: Architecture, tokens: int, flows: bool) -> bool:
    """A feed-forward network with its residual."""
    norm = count.trained.any_in(f"{owner}.ffn_residual")
    read = flows or (norm and model.norm == "pre")
    inner = count.linear(f"{owner}.ffn.fc_in", tokens, model.d_model, model.ffn_dim, read)
    if model.gated:
        inner = count.linear(f"{owner}.ffn.gate", tokens, model.d_model, model.ffn_dim, read) or inner
    out = count.linear(f"{owner}.ffn.fc_out", tokens, model.ffn_dim, model.d_model, inner)
    return flows or out or norm


def _pool(
    count: Products, name: str, stage: PoolingStage, length: int, width: int, pooled_width: int, flows: bool
) -> bool:
    """A pooler: its scorer, and what its operator multiplies."""
    operator = OPERATORS[stage.operator]
    normed = flows or count.trained.any_in(f"{name}.score_norm")
    scores = operator.needs_scores and count.linear(f"{name}.scorer", length, width, 1, normed)
    return count.pool(operator.flops(length, stage.slots(length), pooled_width), scores, normed)


def _stock_layer(count: Products, name: str, config: dict[str, Any], tokens: int, pairs: int, flows: bool) -> bool:
    """A layer of a causal language model with a gated feed-forward network."""
    width, heads = config["hidden_size"], config["num_attention_heads"]
    head, inner = config.get("head_dim") or width // heads, config["intermediate_size"]
    keys, trained = config.get("num_key_value_heads") or heads, count.trained
    read = flows or trained.any_in(f"{name}.input_layernorm")
    q, k, v = (
        count.linear(f"{name}.self_attn.{part}_proj", tokens, width, own * head, read)
        or trained.any_in(f"{name}.self_attn.{part}_norm")
        for part, own in zip("qkv", (heads, keys, keys), strict=True)
    )
    out = count.attention(pairs, heads * head, q, k, v)
    flows = count.linear(f"{name}.self_attn.o_proj", tokens, heads * head, width, out) or flows
    norms = ("post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm")
    flows = flows or any(trained.any_in(f"{name}.{norm}") for norm in norms)
    up, gate = (count.linear(f"{name}.mlp.{part}_proj", tokens, width, inner, flows) for part in ("up", "gate"))
    return count.linear(f"{name}.mlp.down_proj", tokens, inner, width, up or gate) or flows


def _count_pairs(length: int, block_size: int | None) -> int:
    """Pairs of a query and a key in blockwise self-attention."""
    if block_size is None:
        return length**2
    full, rest = divmod(length, block_size)
    return full * block_size**2 + rest**2
