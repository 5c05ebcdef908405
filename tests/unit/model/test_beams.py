"""Beams that share their document's keys and values generate what beams with copies of their own generate."""

from typing import Any

import pytest
import torch
from transformers import GenerationMixin

from transpooler.model import TranspoolerConfig, TranspoolerForConditionalGeneration
from transpooler.model.beams import SharedMemoryGeneration, beams_as_queries, queries_as_beams

REPEATED = {
    "_expand_inputs_for_generation": GenerationMixin._expand_inputs_for_generation,
    "_reorder_cache": lambda self, cache, beam_idx: cache.reorder_cache(beam_idx) or cache,
}


@pytest.fixture
def model() -> TranspoolerForConditionalGeneration:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"d_model": 32, "num_heads": 4, "ffn_dim": 64, "block_size": 8, "vocab_size": 60}
    layers: dict[str, Any] = {"encoder_layers": 2, "decoder_layers": 2}
    pooling = [{"after_layer": 2, "length": 6}]
    # Weights this large make documents and beams differ.
    config = TranspoolerConfig(**sizes, **layers, pooling=pooling, init_std=0.5)
    return TranspoolerForConditionalGeneration(config).eval()


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    ids = torch.randint(3, 60, (3, 30))
    mask = torch.ones_like(ids)
    mask[1, 11:] = 0
    mask[2, 4:] = 0
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize(
    "arguments",
    [
        {"num_beams": 4, "max_new_tokens": 12},
        {"num_beams": 4, "num_return_sequences": 2, "max_new_tokens": 12, "length_penalty": 2.0},
        {"do_sample": True, "num_return_sequences": 3, "max_new_tokens": 12},
        {"num_beams": 3, "max_new_tokens": 8, "use_cache": False},
    ],
)
def test_shared_memory_generates_what_repeated_memory_does(model, batch, arguments, monkeypatch):
    def generate() -> torch.Tensor:
        torch.manual_seed(2)
        return model.generate(**batch, **arguments)

    shared = generate()
    for name, function in REPEATED.items():
        monkeypatch.setattr(SharedMemoryGeneration, name, function)
    assert torch.equal(shared, generate())
    assert len({tuple(row.tolist()) for row in shared}) > 1


def test_keys_are_held_once_a_document_and_weights_come_once_a_beam(model, batch):
    found = model.generate(**batch, num_beams=4, max_new_tokens=5, return_dict_in_generate=True, output_attentions=True)
    cross = found.past_key_values.cross_attention_cache.layers
    assert [len(layer.keys) for layer in cross] == [3, 3]
    assert found.cross_attentions[1][0].shape == (12, 4, 1, 6)


def test_folding_and_unfolding_are_inverse():
    q = torch.randn(6, 2, 3, 5)  # 3 beams of 2 documents
    folded = beams_as_queries(q, 2)
    assert torch.equal(folded[1, :, 3:6], q[4])
    assert torch.equal(queries_as_beams(folded.transpose(1, 2).flatten(2), 6, dim=1), q.transpose(1, 2).flatten(2))
    assert torch.equal(queries_as_beams(folded, 6, dim=2), q)
