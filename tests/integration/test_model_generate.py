"""`generate` with every strategy that `transformers` has for encoder-decoders, on padded batches of documents."""

from typing import Any

import pytest
import torch
from transformers import GenerationConfig, pipeline

from tests.unit.model.test_model import FIXED, LENGTHS, build

STRATEGIES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "beam search": {"num_beams": 3, "num_return_sequences": 2, "length_penalty": 1.0, "no_repeat_ngram_size": 2},
    "sampling": {"do_sample": True, "top_k": 20, "top_p": 0.9, "num_return_sequences": 2},
    "beam sampling": {"do_sample": True, "num_beams": 2},
}


def generated(model, inputs, **settings):
    torch.manual_seed(0)
    return model.generate(**inputs, max_new_tokens=8, **settings)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_with_and_without_cache_the_same(model, inputs, strategy):
    settings = STRATEGIES[strategy]
    cached = generated(model, inputs, **settings)
    assert torch.equal(cached, generated(model, inputs, use_cache=False, **settings))
    assert cached.shape[0] == 3 * settings.get("num_return_sequences", 1)


@pytest.mark.parametrize("strategy", ["greedy", "beam search"])
def test_batched_as_alone_on_either_side_of_the_padding(model, inputs, strategy):
    settings = STRATEGIES[strategy] | {"num_return_sequences": 1}
    together = generated(model, inputs, **settings)
    left = {
        name: torch.stack([row.roll(40 - n) for row, n in zip(part, LENGTHS, strict=True)])
        for name, part in inputs.items()
    }
    assert torch.equal(generated(model, left, **settings), together)
    for row, length in enumerate(LENGTHS):
        alone = generated(model, {"input_ids": inputs["input_ids"][row : row + 1, :length]}, **settings)[0]
        assert torch.equal(together[row, : len(alone)], alone)


@pytest.mark.parametrize("cache", ["static", "dynamic", "offloaded"])
def test_every_kind_of_cache(model, inputs, cache):
    if cache == "offloaded" and not torch.cuda.is_available():
        pytest.skip("offloading moves the cache between a GPU and the host; no GPU here")
    greedy = generated(model, inputs)
    # A static cache is compiled by default: another proof, another price.
    arguments = {"cache_implementation": cache, "disable_compile": True}
    assert torch.equal(generated(model, inputs, **arguments), greedy)


def test_assisted_decoding_and_prompt_lookup_equal_greedy(model, inputs):
    one = {name: part[:1] for name, part in inputs.items()}
    greedy, assistant = generated(model, one), build(pooling=FIXED, decoder_layers=1)
    assert torch.equal(generated(model, one, assistant_model=assistant), greedy)
    # Prompt lookup copies from the decoder's own text, which is short here; the result is greedy's all the same.
    assert torch.equal(generated(model, one, prompt_lookup_num_tokens=2), greedy)


def test_a_decoder_prompt_is_continued(model, inputs):
    greedy = generated(model, inputs)
    continued = model.generate(**inputs, decoder_input_ids=greedy[:, :4], max_new_tokens=5)
    assert torch.equal(continued[:, : greedy.shape[1]], greedy[:, : continued.shape[1]])


def test_several_tokens_after_a_cache(model, inputs):
    ids = torch.randint(6, 300, (3, 9), generator=torch.Generator().manual_seed(4))
    whole = model(**inputs, decoder_input_ids=ids).logits
    first = model(**inputs, decoder_input_ids=ids[:, :5], use_cache=True)
    encoded = model.get_encoder()(**inputs)
    rest = model(encoder_outputs=encoded, past_key_values=first.past_key_values, decoder_input_ids=ids[:, 5:])
    torch.testing.assert_close(rest.logits, whole[:, 5:], atol=1e-4, rtol=1e-4)


def test_generation_config_is_saved_with_the_model(model, inputs, tmp_path):
    model.generation_config = GenerationConfig.from_model_config(model.config)
    model.generation_config.update(num_beams=2, max_new_tokens=6)
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path).eval()
    assert loaded.generation_config.num_beams == 2
    assert torch.equal(loaded.generate(**inputs), model.generate(**inputs))


def test_scores_attentions_and_hidden_states_of_generated_tokens(model, inputs):
    out = model.generate(
        **inputs, max_new_tokens=4, min_new_tokens=4, return_dict_in_generate=True,
        output_scores=True, output_attentions=True, output_hidden_states=True,
    )  # fmt: skip
    slots = model.get_encoder()(**inputs)[0].shape[1]
    assert len(out.scores) == len(out.cross_attentions) == len(out.decoder_hidden_states) == 4
    assert [tuple(step[0].shape) for step in out.cross_attentions] == [(3, 2, 1, slots)] * 4
    assert [tuple(step[0].shape) for step in out.decoder_attentions] == [(3, 2, 1, n) for n in (1, 2, 3, 4)]


def test_embeddings_instead_of_ids(model, inputs):
    embeds = model.get_input_embeddings()(inputs["input_ids"])
    embedded = {"inputs_embeds": embeds, "attention_mask": inputs["attention_mask"]}
    assert torch.equal(generated(model, embedded), generated(model, inputs))


def test_the_encoder_serves_the_feature_extraction_pipeline():
    tokenizer = tokenizer_of_letters()
    encoder = build(pooling=FIXED).model.encoder
    features = pipeline("feature-extraction", model=encoder, tokenizer=tokenizer)("a b c d e f g h " * 3)
    assert torch.tensor(features).shape == (1, 4, 32)


def tokenizer_of_letters():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: index for index, word in enumerate(["<s>", "<pad>", "</s>", "<unk>", *"abcdefgh"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
