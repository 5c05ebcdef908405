"""What the common tests of generation in `transformers` ask of every encoder-decoder, beside test_model_generate.py."""

from typing import Any

import pytest
import torch
from transformers import GenerationMixin
from transformers.generation import CompileConfig

from tests.integration.test_model_generate import STRATEGIES, generated
from tests.unit.model.test_model import FIXED, build
from transpooler.model import TranspoolerForConditionalGeneration

NEW = 4
ALL_OUTPUTS = {
    "return_dict_in_generate": True,
    "output_scores": True,
    "output_logits": True,
    "output_attentions": True,
    "output_hidden_states": True,
}


def rows_of(settings: dict[str, Any]) -> tuple[int, int]:
    """Rows that the decoder computes and rows that come back, of three documents."""
    returned = 3 * settings.get("num_return_sequences", 1)
    return max(returned, 3 * settings.get("num_beams", 1)), returned


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_hands_out_everything(model, inputs, strategy, use_cache):
    settings = STRATEGIES[strategy]
    decoded, returned = rows_of(settings)
    model.generation_config.eos_token_id = None
    out = model.generate(**inputs, **settings, **ALL_OUTPUTS, max_new_tokens=NEW, use_cache=use_cache)
    assert out.sequences.shape == (returned, NEW + 1)
    assert [tuple(part.shape) for part in out.scores] == [(decoded, 300)] * NEW
    assert [tuple(part.shape) for part in out.logits] == [(decoded, 300)] * NEW
    slots = model.get_encoder()(**inputs)[0].shape[1]
    new = [1] * NEW if use_cache else [1, 2, 3, 4]
    assert [tuple(step[0].shape) for step in out.cross_attentions] == [(decoded, 2, n, slots) for n in new]
    assert [tuple(step[-1].shape) for step in out.decoder_hidden_states] == [(decoded, n, 32) for n in new]
    assert [len(step) for step in out.decoder_hidden_states] == [4] * NEW
    # The encoder's part is of the documents, not of their beams.
    assert [part.shape[0] for part in out.encoder_hidden_states] == [3, 3, 3]
    assert [part.shape[:2] for part in out.encoder_attentions] == [(3, 2)] * 2
    assert (out.past_key_values is not None) == use_cache


@pytest.mark.parametrize("strategy", ["greedy", "beam search"])
def test_eager_attention_generates_the_same(model, inputs, strategy):
    expected = generated(model, inputs, **STRATEGIES[strategy])
    model.set_attn_implementation("eager")
    assert torch.equal(generated(model, inputs, **STRATEGIES[strategy]), expected)


def test_generation_continues_from_what_was_kept(model, inputs):
    model.generation_config.eos_token_id = None
    whole = model.generate(**inputs, max_new_tokens=6)
    first = model.generate(**inputs, max_new_tokens=3, return_dict_in_generate=True)
    assert torch.equal(first.sequences, whole[:, :4])
    more = {"decoder_input_ids": first.sequences, "past_key_values": first.past_key_values}
    assert torch.equal(model.generate(**inputs, **more, max_new_tokens=3), whole)


def test_generation_from_the_encoder_s_output(model, inputs):
    encoded = model.get_encoder()(**inputs)
    for settings in ({}, {"num_beams": 2}):
        assert torch.equal(generated(model, {"encoder_outputs": encoded}, **settings),
                           generated(model, inputs, **settings))  # fmt: skip


def test_generation_from_nothing(model):
    """Documents of one bos token, as for every model that has one."""
    assert model.generate(max_new_tokens=3).shape[0] == 1
    assert isinstance(model, GenerationMixin)


def test_embeddings_with_a_static_cache(model, inputs):
    embedded = {"inputs_embeds": model.get_input_embeddings()(inputs["input_ids"]), **inputs}
    embedded.pop("input_ids")
    static = generated(model, embedded, cache_implementation="static", disable_compile=True)
    assert torch.equal(static, generated(model, inputs))


@pytest.mark.parametrize(
    "settings",
    [
        {"encoder_no_repeat_ngram_size": 2, "num_beams": 3},
        {"encoder_repetition_penalty": 1.3, "num_beams": 3},
        {"watermarking_config": {"bias": 2.5}},
        {"typical_p": 0.8, "do_sample": True},
        {"forced_bos_token_id": 5, "forced_eos_token_id": 2},
        {"bad_words_ids": [[1, 0]], "repetition_penalty": 1.2, "remove_invalid_values": True},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_settings_that_look_at_more_than_the_logits(model, inputs, settings):
    """Some repeat the document's ids for every beam, though its encoding is not repeated here."""
    cached = generated(model, inputs, **settings)
    assert torch.equal(cached, generated(model, inputs, **settings, use_cache=False))


@pytest.mark.parametrize(
    "settings", [{"num_assistant_tokens": 2}, {"do_sample": True}, {"prompt_lookup_num_tokens": 2}]
)
def test_assisted_generation_of_one_document(inputs, settings):
    model, assistant = build(pooling=FIXED), build(pooling=FIXED, decoder_layers=1)
    one = {name: part[:1] for name, part in inputs.items()}
    helped = {"assistant_model": assistant} if "prompt_lookup_num_tokens" not in settings else {}
    out = generated(model, one, **helped, **settings, **ALL_OUTPUTS)
    assert len(out.logits) == out.sequences.shape[1] - 1
    if "do_sample" not in settings:
        assert torch.equal(out.sequences, generated(model, one))


@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_decoding_with_a_static_cache_compiles_into_one_graph(inputs, backend):
    """`generate` compiles the steps after the first where it finds a GPU; here it is told to."""
    from torch._dynamo.utils import counters

    model = build(pooling=FIXED, decoder_layers=1)
    expected = generated(model, inputs)
    torch._dynamo.reset()
    counters.clear()
    settings: Any = CompileConfig(fullgraph=True, dynamic=False, backend=backend, mode="default")
    settings._compile_all_devices = True
    assert TranspoolerForConditionalGeneration._can_compile_fullgraph
    arguments = {"cache_implementation": "static", "compile_config": settings}
    assert torch.equal(generated(model, inputs, **arguments), expected)
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]


def test_a_long_prompt_of_the_decoder_is_read_in_pieces(model, inputs):
    prompt = torch.randint(6, 300, (3, 7), generator=torch.Generator().manual_seed(5))
    whole = generated(model, inputs | {"decoder_input_ids": prompt})
    assert torch.equal(generated(model, inputs | {"decoder_input_ids": prompt}, prefill_chunk_size=3), whole)
