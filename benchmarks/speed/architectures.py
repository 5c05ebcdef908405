"""The models that are compared: the presets of configs/ at two depths, and LED and LongT5 of `transformers`.

All have width 512, 8 heads, feed-forward 2,048 (ReLU), a vocabulary of 32,000 and random weights. LED attends within a
window of 512 tokens with a global first token, as it is used to summarise; LongT5 has its published local radius of 127
and transient global tokens. Both ship without fused attention; ours goes through `scaled_dot_product_attention`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from transpooler.common import UserError

PAD, BOS, EOS, NUM_SPECIAL = 1, 0, 2, 3
SPECIAL: dict[str, Any] = {"pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": EOS}
LED_WINDOW = 512


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One architecture."""

    source: str
    """A preset of configs/, or the model type of `transformers`."""
    group: str
    """Architectures of one group are compared with each other."""
    layers: tuple[int, int]
    """Encoder and decoder layers."""
    overrides: tuple[str, ...] = ()


BASELINES = {"small": ("blockwise", "vanilla"), "deep": ("deep_blockwise", "deep_vanilla")}
"""Group -> the architectures whose costs are divided by those of its members."""

ENTRIES: Mapping[str, Entry] = {
    "vanilla": Entry(source="vanilla", group="small", layers=(2, 2)),
    "blockwise": Entry(source="blockwise", group="small", layers=(2, 2)),
    "transpooler": Entry(source="transpooler", group="small", layers=(2, 2)),
    "pyramidion": Entry(source="pyramidion", group="small", layers=(2, 2)),
    "led": Entry(source="led", group="small", layers=(2, 2)),
    "longt5": Entry(source="longt5", group="small", layers=(2, 2)),
    # The paper's claim is about its training: 24 encoder layers against 2, the same decoder.
    "pyramid24": Entry(source="deep_pyramidion", group="small", layers=(24, 2)),
    "deep_vanilla": Entry(source="vanilla", group="deep", layers=(6, 6)),
    "deep_blockwise": Entry(source="blockwise", group="deep", layers=(6, 6)),
    "deep_transpooler": Entry(
        source="transpooler", group="deep", layers=(6, 6), overrides=("model.pooling=[{after_layer: 6, length: 512}]",)
    ),
    "deep_pyramidion": Entry(source="deep_pyramidion", group="deep", layers=(6, 6)),
    "deep_led": Entry(source="led", group="deep", layers=(6, 6)),
    "deep_longt5": Entry(source="longt5", group="deep", layers=(6, 6)),
}


def find_entry(name: str) -> Entry:
    """Find an architecture by name; UserError lists the known names."""
    if name not in ENTRIES:
        raise UserError(f"--architectures: {name!r} is unknown; choose among {', '.join(ENTRIES)}")
    return ENTRIES[name]


def build(name: str, *, length: int, target_tokens: int, vocab_size: int, overrides: tuple[str, ...] = ()) -> nn.Module:
    """Build a model with random weights (float32, CPU) for `length` input tokens; `overrides` apply to ours alone."""
    found = find_entry(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if found.source == "led":
            return _led(found.layers, length, target_tokens, vocab_size)
        if found.source == "longt5":
            return _longt5(found.layers, vocab_size)
        return _ours(found, vocab_size, overrides)


def check_overrides(names: Sequence[str], overrides: tuple[str, ...]) -> None:
    """Raise UserError if one of our architectures among `names` cannot be built with the overrides."""
    for item in overrides:
        if not item.startswith("model."):
            raise UserError(f"--set {item}: cells take settings of the model alone; write model.KEY=VALUE")
    for name in names:
        if overrides and find_entry(name).source not in ("led", "longt5"):
            try:
                _config(find_entry(name), 32_000, overrides)
            except UserError as error:
                raise UserError(f"--set, {name}: {error}") from None


def make_inputs(model: Any, *, batch_size: int, length: int, vocab_size: int) -> dict[str, Tensor]:
    """Make random documents of equal length: input_ids and attention_mask (B, N) int64, and LED's global mask."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(NUM_SPECIAL, vocab_size, (batch_size, length), generator=generator)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if model.config.model_type == "led":
        batch["global_attention_mask"] = torch.zeros_like(ids)
        batch["global_attention_mask"][:, 0] = 1
    return batch


def _ours(found: Entry, vocab_size: int, overrides: tuple[str, ...]) -> nn.Module:
    from transpooler.model import TranspoolerForConditionalGeneration

    return TranspoolerForConditionalGeneration(_config(found, vocab_size, overrides))


def _config(found: Entry, vocab_size: int, overrides: tuple[str, ...]) -> Any:
    from transpooler.model import TranspoolerConfig
    from transpooler.trainer.config import load_config

    encoder_layers, decoder_layers = found.layers
    layers = (f"model.encoder_layers={encoder_layers}", f"model.decoder_layers={decoder_layers}")
    architecture = load_config([found.source], [*layers, *found.overrides, *overrides]).seq2seq
    return TranspoolerConfig.from_architecture(architecture, vocab_size=vocab_size, **SPECIAL)


def _led(layers: tuple[int, int], length: int, target_tokens: int, vocab_size: int) -> nn.Module:
    from transformers import LEDConfig, LEDForConditionalGeneration

    config = LEDConfig(
        vocab_size=vocab_size,
        d_model=512,
        encoder_layers=layers[0],
        decoder_layers=layers[1],
        encoder_attention_heads=8,
        decoder_attention_heads=8,
        encoder_ffn_dim=2048,
        decoder_ffn_dim=2048,
        activation_function="relu",
        dropout=0.1,
        attention_window=LED_WINDOW,
        max_encoder_position_embeddings=-(-length // LED_WINDOW) * LED_WINDOW,
        max_decoder_position_embeddings=max(1024, target_tokens + 2),
        decoder_start_token_id=BOS,
        **SPECIAL,
    )
    return LEDForConditionalGeneration(config)


def _longt5(layers: tuple[int, int], vocab_size: int) -> nn.Module:
    from transformers import LongT5Config, LongT5ForConditionalGeneration

    config = LongT5Config(
        vocab_size=vocab_size,
        d_model=512,
        d_kv=64,
        d_ff=2048,
        num_heads=8,
        num_layers=layers[0],
        num_decoder_layers=layers[1],
        feed_forward_proj="relu",
        dropout_rate=0.1,
        encoder_attention_type="transient-global",
        **SPECIAL,
    )
    config.decoder_start_token_id = PAD
    return LongT5ForConditionalGeneration(config)
