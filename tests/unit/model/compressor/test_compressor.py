"""A compressor's stock parts stay what they are: equal to the stock models to the bit, whatever their family."""

import math
import re
from typing import Any

import pytest
import torch
from transformers import (
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    Olmo2Config,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from transpooler.model.architecture import Architecture
from transpooler.model.compressor.architecture import CompressorArchitecture
from transpooler.model.compressor.config import CompressorConfig
from transpooler.model.compressor.modeling import CompressorForConditionalGeneration

SIZES: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 99, "head_dim": 8, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
WINDOWS: dict[str, Any] = {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"] * 2}
FAMILIES: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**SIZES),
    "qwen2": Qwen2Config(**SIZES, tie_word_embeddings=True),
    "qwen3": Qwen3Config(**SIZES),
    "mistral": MistralConfig(**SIZES, sliding_window=8),
    "gemma3": Gemma3TextConfig(**SIZES, **WINDOWS),
    "olmo2": Olmo2Config(**SIZES),
}
IDS = torch.randint(3, 99, (2, 40), generator=torch.Generator().manual_seed(0))
LABELS = torch.randint(3, 99, (2, 5), generator=torch.Generator().manual_seed(1))
POOLING = [{"after_layer": 1, "ratio": 0.5}, {"after_layer": 3, "ratio": 0.25}]


def compressor(family: str, num_layers: int = 4, **settings) -> CompressorForConditionalGeneration:
    torch.manual_seed(0)
    reader = FAMILIES[family].to_dict()
    encoder = {**reader, "num_hidden_layers": num_layers}
    if encoder.get("layer_types"):
        encoder["layer_types"] = encoder["layer_types"][:num_layers]
    return CompressorForConditionalGeneration(CompressorConfig(encoder=encoder, reader=reader, **settings)).eval()


@pytest.mark.parametrize("family", FAMILIES)
def test_reading_the_embeddings_of_a_text_is_reading_the_text(family):
    model = compressor(family, num_layers=0)
    model.encoder.get_input_embeddings().load_state_dict(model.reader.get_input_embeddings().state_dict())
    text = torch.cat([IDS, LABELS[:, :-1]], dim=1)
    stock = model.reader(input_ids=text, logits_to_keep=LABELS.shape[1]).logits
    assert torch.equal(model(IDS, labels=LABELS).logits, stock)
    assert stock.std() > 0.01


@pytest.mark.parametrize("family", FAMILIES)
def test_layers_that_run_a_few_at_a_time_are_the_stock_model(family):
    """A document of one block; the schedule cuts the stack into three parts and keeps everything."""
    keep_all = [{"after_layer": 1, "length": 50}, {"after_layer": 3, "length": 40}]
    model = compressor(family, block_size=None, pooling=keep_all)
    seen = []
    norm: Any = model.encoder.stock.norm
    norm.register_forward_hook(lambda module, inputs, output: seen.append(output))
    model.encoder(IDS)
    hidden = model.encoder.stock(input_ids=IDS).last_hidden_state
    torch.testing.assert_close(seen[0].view_as(hidden), hidden, rtol=0, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_document_does_not_depend_on_its_batch_and_cached_beams_equal_uncached_ones(family):
    model = compressor(family, block_size=16, pooling=POOLING, prefix_ids=[5, 6], prompt_ids=[7])
    mask = torch.ones_like(IDS)
    mask[1, 30:] = 0
    together, alone = model(IDS, mask, labels=LABELS).logits[1:], model(IDS[1:, :30], labels=LABELS[1:]).logits
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-6)
    runs = [
        model.generate(IDS, mask, max_new_tokens=6, num_beams=2, do_sample=False, use_cache=cached)
        for cached in (True, False)
    ]
    assert torch.equal(*runs)
    assert runs[0].shape == (2, 6)


def test_tokens_of_a_block_see_those_before_them_or_all():
    for causal in (True, False):
        model = compressor("llama", block_size=8, causal=causal)
        changed = IDS.clone()
        changed[:, 7] = 3 + (changed[:, 7] - 2) % 90  # the last token of the first block
        first, second = (model.encoder(ids).last_hidden_state for ids in (IDS, changed))
        # Carried embeddings aside, the adapter starts at zero: look before it.
        model.encoder.adapter.fc_out.reset_parameters()
        first, second = (model.encoder(ids).last_hidden_state for ids in (IDS, changed))
        before, block, after = first[:, :7] == second[:, :7], first[:, 7] == second[:, 7], first[:, 8:] == second[:, 8:]
        assert bool(before.all()) == causal
        assert not block.all()
        assert after.all()


def test_every_parameter_learns_and_a_copy_is_a_model_of_its_own():
    import copy

    model = copy.deepcopy(compressor("llama", block_size=16, pooling=POOLING).train())
    model.encoder.adapter.fc_out.reset_parameters()
    model(IDS, labels=LABELS).loss.backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"pooling": [{"after_layer": 5, "ratio": 0.5}]}, "after_layer"),
        ({"pooling": [{"after_layer": 1, "ratio": 0.3}]}, "ratio"),
    ],
)
def test_a_schedule_that_does_not_fit_is_refused(settings, named):
    with pytest.raises(ValueError, match=named):
        compressor("llama", **settings)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("scorer_init_std", -0.1), ("scorer_init_std", math.nan), ("pooling_base", 1.0), ("pooling_base", 1e300)),
        *(("exploration_noise", -0.5), ("exploration_noise", math.inf)),
    ],
)
def test_poolers_have_the_rules_of_the_encoder_decoder(key: str, value: float) -> None:
    settings: dict[str, Any] = {key: value}
    sizes: dict[str, Any] = {name: FAMILIES["llama"].to_dict() for name in ("encoder", "reader")}
    with pytest.raises(ValueError, match=re.escape(f"{key} is {value}; must be")):
        CompressorConfig(**sizes, **settings)
    (problem,) = CompressorArchitecture(**sizes, **settings).problems()
    assert problem in [*Architecture(**settings).problems()]
