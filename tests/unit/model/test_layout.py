"""Padding costs nothing, the selection that is shown is the one that happened, and bad input is named."""

from typing import Any, cast

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.unit.model.test_model import LENGTHS, RATIOS, TINY
from transpooler.model import TranspoolerConfig, TranspoolerEncoder, TranspoolerForConditionalGeneration
from transpooler.model.layout import Layout

PRE: dict[str, Any] = {"norm": "pre", "positions": "rotary"}


def encoder(**settings: Any) -> TranspoolerEncoder:
    torch.manual_seed(0)
    return TranspoolerEncoder(TranspoolerConfig(**TINY | settings)).eval()


def ragged(lengths: tuple[int, ...], width: int, side: str = "right") -> dict[str, torch.Tensor]:
    ids = torch.randint(6, 300, (len(lengths), width), generator=torch.Generator().manual_seed(2))
    mask = (torch.arange(width) < torch.tensor(lengths)[:, None]).long()
    mask = mask if side == "right" else mask.flip(1)
    return {"input_ids": torch.where(mask > 0, ids, 1), "attention_mask": mask}


def flops(function) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        function()
    return counter.get_total_flops()


def test_a_ragged_batch_costs_what_its_documents_cost_alone():
    model, lengths = encoder(attn_implementation="eager"), (40, 24, 8)
    together = flops(lambda: model(**ragged(lengths, width=64)))
    assert together == sum(flops(lambda n=n: model(**ragged((n,), width=n))) for n in lengths)


def test_after_pooling_the_padding_is_dropped_again():
    layouts: list[Layout] = []
    model = encoder(pooling=RATIOS)
    for layer in model.layers:
        layer.register_forward_pre_hook(lambda module, args: layouts.append(args[1]))
    memory = model(**ragged(LENGTHS, width=64)).last_hidden_state
    assert [layout.lengths for layout in layouts] == [[40, 25, 3], [20, 13, 2]]
    assert [layout.blocks.rows for layout in layouts] == [5 + 4 + 1, 3 + 2 + 1]
    assert memory.shape == (3, 5, 32)


@pytest.mark.parametrize("lengths", [(9, 4, 1), (8, 8), (16, 8), (7,)])
def test_putting_and_taking_are_inverse(lengths):
    layout = Layout(lengths, 8, torch.device("cpu"))
    x = torch.arange(sum(lengths) * 2.0).view(-1, 2).requires_grad_()
    for grid in (layout.documents, layout.blocks):
        assert torch.equal(grid.to_tokens(grid.to_rows(x)), x)
        weights = torch.rand(grid.rows, grid.columns, 2)
        assert torch.equal(torch.autograd.grad((grid.to_rows(x) * weights).sum(), x)[0], grid.to_tokens(weights))
    assert layout.document_mask.sum(1).tolist() == list(lengths)
    assert (layout.block_mask is None) == all(length % min(8, max(lengths)) == 0 for length in lengths)


def test_an_empty_document_disturbs_nothing():
    model = encoder(pooling=RATIOS)
    inputs = ragged((25, 0, 12), width=25)
    out, other = model(**inputs), model(**{name: part[::2] for name, part in inputs.items()})
    assert out.attention_mask.sum(1).tolist() == [4, 0, 2]
    assert not out.last_hidden_state[1].any()
    torch.testing.assert_close(out.last_hidden_state[::2], other.last_hidden_state)
    whole = TranspoolerForConditionalGeneration(TranspoolerConfig(**TINY, pooling=RATIOS))
    loss = whole(**inputs, labels=torch.full((3, 2), 7)).loss
    loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in whole.parameters() if parameter.grad is not None)


def test_compiled_without_graph_breaks_it_computes_the_same():
    model, inputs = encoder(pooling=RATIOS), ragged(LENGTHS, width=40)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)(**inputs).last_hidden_state
    torch.testing.assert_close(compiled, model(**inputs).last_hidden_state, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(
    "operator", ["successive_halving", "threshold", "hard", "random", "strided", "strided_mean", "weighted_mean"]
)
@torch.no_grad()
def test_the_selection_is_what_flowed_into_each_slot(operator, side):
    """With layers that pass everything through, memory slot s is the sum of w_i e_i over the tokens shown for s."""
    stages = [
        {**stage, "operator": operator}
        for stage in ({"after_layer": 1, "length": 16}, {"after_layer": 2, "ratio": 0.25})
    ]
    config = TranspoolerConfig(**TINY, **PRE, pooling=stages)
    model = TranspoolerForConditionalGeneration(config).eval()
    for layer in cast(Any, model.model.encoder.layers):
        for last in (layer.attention.out_proj, layer.ffn.fc_out):
            last.weight.zero_()
            last.bias.zero_()
    model.model.encoder.final_norm.norm = None
    inputs = ragged(LENGTHS, width=64, side=side)
    memory = model.model.encoder(**inputs)
    weights, slots, _ = model.select(**inputs)
    embedded = model.get_input_embeddings()(inputs["input_ids"])
    for row, length in enumerate(LENGTHS):
        expected = torch.zeros_like(memory.last_hidden_state[row])
        for token in range(64):
            if slots[row, token] >= 0:
                expected[slots[row, token]] += weights[row, token] * embedded[row, token]
        torch.testing.assert_close(memory.last_hidden_state[row], expected, atol=1e-5, rtol=1e-4)
        assert not weights[row][inputs["attention_mask"][row] == 0].any()
        assert len(set(slots[row].tolist()) - {-1}) == memory.attention_mask[row].sum() == -(-min(length, 16) // 4)


BAD: dict[str, dict[str, Any]] = {
    "input_ids, inputs_embeds: neither given": {"input_ids": None},
    r"input_ids: float32 \(3, 40\); expected int64": {"input_ids": torch.zeros(3, 40)},
    r"input_ids: int64 \(3, 0\); expected at least 1 document": {"input_ids": torch.zeros(3, 0, dtype=torch.int64)},
    r"input_ids: contains 300; expected token ids in 0..299": {"input_ids": torch.full((3, 40), 300)},
    r"inputs_embeds: float32 \(3, 40, 31\); expected floating": {
        "input_ids": None,
        "inputs_embeds": torch.zeros(3, 40, 31),
    },
    r"attention_mask: int64 \(3, 39\); expected \(3, 40\)": {"attention_mask": torch.ones(3, 39, dtype=torch.int64)},
    r"labels: int64 \(7,\); expected": {"labels": torch.zeros(7, dtype=torch.int64)},
    r"labels: int64 \(3, 7\); expected \(3, 2\)": {"decoder_input_ids": torch.zeros(3, 2, dtype=torch.int64)},
    "decoder_input_ids, decoder_inputs_embeds: neither given": {"labels": None},
    r"encoder_hidden_states: \(3, 40, 32\); expected": {
        "decoder_input_ids": torch.zeros(2, 7, dtype=torch.int64),
        "labels": torch.zeros(2, 7, dtype=torch.int64),
    },
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_named(message):
    model = TranspoolerForConditionalGeneration(TranspoolerConfig(**TINY))
    inputs = {**ragged(LENGTHS, width=40), "labels": torch.full((3, 7), 8)}
    with pytest.raises(ValueError, match=message):
        model(**inputs | BAD[message])
