"""The pooling encoder-decoder: what it computes does not depend on padding, batches, caches or saving."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import (
    AutoModel,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTextEncoding,
)
from transformers.cache_utils import DynamicCache, EncoderDecoderCache

from transpooler.model import TranspoolerConfig, TranspoolerForConditionalGeneration
from transpooler.model.architecture import Architecture
from transpooler.model.inspection import pooling_statistics
from transpooler.model.ops.operators import OPERATORS
from transpooler.model.ops.schedule import OPERATOR_NAMES, PoolingStage

TINY: dict[str, Any] = {
    "vocab_size": 300,
    "d_model": 32,
    "num_heads": 2,
    "ffn_dim": 64,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "block_size": 8,
    "dropout": 0.0,
    "init_std": 0.2,
}
FIXED = [{"after_layer": 1, "length": 16}, {"after_layer": 2, "length": 4}]
RATIOS = [{"after_layer": 1, "ratio": 0.5}, {"after_layer": 2, "ratio": 0.25}]
SPANS = [{"after_layer": 1, "ratio": 0.5, "span": 2}, {"after_layer": 2, "length": 4, "span": 4}]
SETTINGS: dict[str, dict[str, Any]] = {
    "paper": {"pooling": FIXED},
    "modern": {"pooling": RATIOS, "norm": "pre", "positions": "rotary", "activation": "swiglu"},
    "modern_normed": {"pooling": RATIOS, "norm": "pre", "positions": "rotary", "pooling_norm": "before"},
    "options": {
        "pooling": RATIOS,
        "norm": "pre",
        "norm_kind": "rms",
        "norm_eps": 1e-6,
        "activation": "geglu",
        "positions": "relative",
        "relative_buckets": 8,
        "relative_max_distance": 12,
        "relative_per_layer": True,
        "num_heads": 4,
        "kv_heads": 2,
        "head_dim": 6,
        "attention_scale": 0.7,
        "attention_bias": False,
        "ffn_bias": False,
        "embedding_norm": True,
        "tied_head": False,
        "logits_bias": True,
        "logits_scale": 0.5,
    },
    "staggered": {
        "stagger_blocks": True,
        "pooling": RATIOS[1:],
        "norm": "pre",
        "positions": "relative",
        "relative_buckets": 8,
        "relative_max_distance": 12,
    },
    "staggered_spans": {"stagger_blocks": True, "pooling": SPANS, "norm": "pre", "positions": "rotary"},
    "blockwise": {},
    "vanilla": {"block_size": None},
}
LENGTHS = (40, 25, 3)


def build(**settings: Any) -> TranspoolerForConditionalGeneration:
    torch.manual_seed(0)
    return TranspoolerForConditionalGeneration(TranspoolerConfig(**TINY | settings)).eval()


def statistics_of(model, ids, mask):
    return pooling_statistics(model.get_encoder()(ids, mask, output_pooling=True).pooled_stages)


@pytest.fixture(params=SETTINGS)
def model(request):
    return build(**SETTINGS[request.param])


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(1)
    input_ids = torch.randint(6, 300, (3, 40), generator=generator)
    mask = (torch.arange(40) < torch.tensor(LENGTHS)[:, None]).long()
    labels = torch.randint(6, 300, (3, 7), generator=generator)
    labels[1, 4:] = -100
    return {"input_ids": torch.where(mask > 0, input_ids, 1), "attention_mask": mask, "labels": labels}


def test_batched_equals_alone(model, batch):
    logits = model(**batch).logits
    for row, length in enumerate(LENGTHS):
        alone = model(input_ids=batch["input_ids"][row : row + 1, :length], labels=batch["labels"][row : row + 1])
        torch.testing.assert_close(logits[row], alone.logits[0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("positions", ["learned", "sinusoidal"])
def test_positions_that_start_in_each_block_make_blocks_alike(positions):
    """A block is encoded as it would be alone; with positions of the document it is not, but for the first."""
    ids = torch.randint(6, 300, (1, 24), generator=torch.Generator().manual_seed(2))
    for counted_from, alike in (("block", True), ("document", False)):
        settings: dict[str, Any] = {"positions": positions, "block_positions": counted_from, "max_positions": 24}
        encoder = build(**settings).model.encoder
        whole = encoder(ids).last_hidden_state[0]
        alone = torch.cat([encoder(ids[:, start : start + 8]).last_hidden_state[0] for start in (0, 8, 16)])
        torch.testing.assert_close(whole[:8], alone[:8], atol=1e-5, rtol=1e-4)
        assert torch.allclose(whole, alone, atol=1e-4) == alike


def test_the_side_of_the_padding_changes_nothing(model, batch):
    left = {
        name: torch.stack([row.roll(40 - length) for row, length in zip(batch[name], LENGTHS, strict=True)])
        for name in ("input_ids", "attention_mask")
    }
    assert torch.equal(model(**batch | left).logits, model(**batch).logits)
    selection, selection_left = model.select(batch["input_ids"], batch["attention_mask"]), model.select(**left)
    assert torch.equal(selection.weights_BN[1, :25], selection_left.weights_BN[1, 15:])
    assert torch.equal(selection.slots_BN[1, :25], selection_left.slots_BN[1, 15:])


def test_later_target_tokens_do_not_leak(model, batch):
    changed = batch["labels"].clone()
    changed[:, 4] = 7
    before, after = model(**batch).logits, model(**batch | {"labels": changed}).logits
    assert torch.equal(before[:, :5], after[:, :5])
    assert not torch.equal(before[:, 5:], after[:, 5:])


def test_beam_search_with_cache_equals_without(model, batch):
    arguments = {"num_beams": 3, "max_new_tokens": 10, "attention_mask": batch["attention_mask"]}
    cached = model.generate(batch["input_ids"], use_cache=True, **arguments)
    assert torch.equal(cached, model.generate(batch["input_ids"], use_cache=False, **arguments))
    alone = model.generate(batch["input_ids"][1:2, :25], num_beams=3, max_new_tokens=10)[0]
    assert torch.equal(cached[1, : len(alone)], alone)


def test_activation_checkpointing_changes_no_gradient(model, batch):
    model.train()
    parameters = list(model.parameters())
    plain = torch.autograd.grad(model(**batch).loss, parameters)
    model.gradient_checkpointing_enable()
    for a, b in zip(plain, torch.autograd.grad(model(**batch).loss, parameters), strict=True):
        assert torch.equal(a, b)


def _note(kept: list[torch.Tensor], tensor: torch.Tensor) -> torch.Tensor:
    kept.append(tensor)
    return tensor


def test_checkpointed_losses_of_long_texts_keep_no_logits(model, batch):
    model.train()
    parameters = list(model.parameters())
    labels = torch.randint(6, 250, (3, 150), generator=torch.Generator().manual_seed(5))
    labels[1, 90:] = -100
    for more in ({}, {"num_items_in_batch": 17}):
        model.gradient_checkpointing_disable()
        plain = model(**batch | {"labels": labels, **more})
        gradients = torch.autograd.grad(plain.loss, parameters)
        assert plain.logits is not None
        model.gradient_checkpointing_enable({"use_reentrant": False})
        kept: list[torch.Tensor] = []
        with torch.autograd.graph.saved_tensors_hooks(partial(_note, kept), lambda tensor: tensor):
            pieced = model(**batch | {"labels": labels, **more})
        assert pieced.logits is None
        assert model.config.vocab_size not in {size for tensor in kept for size in tensor.shape[1:]}
        torch.testing.assert_close(pieced.loss, plain.loss, rtol=1e-6, atol=0)
        for ours, theirs in zip(torch.autograd.grad(pieced.loss, parameters), gradients, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
    assert model.eval()(**batch | {"labels": labels}).logits is not None
    with pytest.raises(ValueError, match="labels"):
        model.train()(**batch | {"labels": labels, "decoder_input_ids": labels[:, :99].clamp(min=0)})


def test_saved_and_loaded_is_the_same_model(model, batch, tmp_path):
    model.save_pretrained(tmp_path)
    loaded = AutoModelForSeq2SeqLM.from_pretrained(tmp_path).eval()
    assert type(loaded) is TranspoolerForConditionalGeneration
    assert loaded.config.pooling == model.config.pooling
    assert (loaded.lm_head.weight is loaded.model.encoder.embed_tokens.weight) == model.config.tied_head
    assert torch.equal(loaded(**batch).logits, model(**batch).logits)


def test_every_parameter_takes_part_however_short_the_documents(model):
    loss = model(input_ids=torch.tensor([[2]]), labels=torch.tensor([[-100]])).loss
    assert loss.item() == 0
    loss.backward()
    missing = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert not missing


def test_the_loss_is_a_sum_over_the_items_that_are_named(batch):
    model = build()
    mean, summed = model(**batch).loss, model(**batch, num_items_in_batch=1).loss
    assert summed.item() == pytest.approx(mean.item() * int((batch["labels"] != -100).sum()), rel=1e-5)


@pytest.mark.parametrize("operator", OPERATORS)
def test_every_operator_keeps_what_it_says(operator, batch):
    stages = [{**stage, "operator": operator} for stage in FIXED]
    model = build(pooling=stages)
    outputs = model.model.encoder(batch["input_ids"], batch["attention_mask"])
    assert outputs.attention_mask.sum(1).tolist() == [4, 4, 3]
    model.train()
    model(**batch).loss.backward()
    scorers = [parameter for name, parameter in model.named_parameters() if "scorer.weight" in name]
    assert len(scorers) == (0 if operator in ("random", "strided", "strided_mean") else 2)
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in scorers)


def test_ratios_follow_each_document(batch):
    outputs = build(pooling=RATIOS).model.encoder(batch["input_ids"], batch["attention_mask"])
    assert outputs.attention_mask.sum(1).tolist() == [5, 4, 1]  # ceil(ceil(n / 2) / 4) of 40, 25, 3
    assert (outputs.positions[1, :4].diff() > 0).all()


@pytest.mark.parametrize("kept", [{"length": 16}, {"ratio": 0.25}, {"ratio": 0.5}])
def test_slots_of_a_batch_are_those_of_its_documents(kept):
    stage, lengths = PoolingStage(after_layer=1, **kept), range(80)
    assert stage.slots_of_each(torch.tensor(lengths)).tolist() == [stage.slots(length) for length in lengths]


def test_each_slot_carries_the_position_of_a_token_that_flowed_into_it(batch):
    model = build(pooling=FIXED)
    outputs = model.model.encoder(batch["input_ids"], batch["attention_mask"])
    slots = model.select(batch["input_ids"], batch["attention_mask"]).slots_BN
    for row, count in enumerate(outputs.attention_mask.sum(1).tolist()):
        assert slots[row, outputs.positions[row, :count]].tolist() == list(range(count))


def test_selected_weights_sum_to_one_in_each_slot(batch):
    model = build(pooling=FIXED)
    selection = model.select(batch["input_ids"], batch["attention_mask"])
    for row, length in enumerate(LENGTHS):
        sums = torch.zeros(4).index_add(0, selection.slots_BN[row, :length], selection.weights_BN[row, :length])
        torch.testing.assert_close(sums[: min(4, length)], torch.ones(min(4, length)))
        assert not selection.weights_BN[row, length:].any()
    statistics = statistics_of(model, batch["input_ids"], batch["attention_mask"])
    shares = [statistics[f"pool1_share_tenth{tenth}"] for tenth in range(10)]
    assert sum(shares) == pytest.approx(1)
    assert 0.5 <= statistics["pool1_mean_top_weight"] <= 1


def test_statistics_count_documents_that_were_pooled(batch):
    model = build(pooling=[{"after_layer": 2, "length": 30}])  # documents of 40, 25 and 3 tokens
    together = statistics_of(model, batch["input_ids"], batch["attention_mask"])
    assert statistics_of(model, batch["input_ids"][:1], batch["attention_mask"][:1]) == pytest.approx(together)
    assert together["pool0_mean_top_weight"] < 1
    assert statistics_of(model, batch["input_ids"][1:], batch["attention_mask"][1:]) == {}


def test_only_training_leaves_something_behind_and_no_copy_takes_it_along(batch):
    model = build(pooling=FIXED)
    small = len(pickle.dumps(model))
    model(**batch)
    assert model.pooling_statistics() == {}
    assert len(pickle.dumps(model)) == small
    model.train()(**batch)
    assert "pool1_share_tenth0" in model.pooling_statistics()
    assert len(pickle.dumps(model)) == small
    assert copy.deepcopy(model).pooling_statistics() == {}


def test_threads_get_the_selections_of_their_own_documents():
    model, documents = build(pooling=FIXED), torch.randint(6, 300, (24, 1, 40))
    alone = [model.select(ids).slots_BN for ids in documents]
    with ThreadPoolExecutor(4) as threads:
        together = list(threads.map(lambda ids: model.select(ids).slots_BN, documents))
    assert all(torch.equal(*pair) for pair in zip(alone, together, strict=True))


def test_a_float64_model_computes_in_float64(batch):
    """Finite differences of the loss follow the gradient of a scorer, which float32 anywhere between would spoil."""
    model = build(pooling=FIXED, norm="pre").double()
    loss = model(**batch).loss
    assert loss.dtype == torch.float64
    weight = model.model.encoder.poolers["1"].scorer.weight
    (gradient,) = torch.autograd.grad(loss, weight)
    with torch.no_grad():
        weight[0, 3] += 1e-6
        difference = (model(**batch).loss - loss) / 1e-6
    assert difference.item() == pytest.approx(gradient[0, 3].item(), rel=1e-3)
    assert model.get_encoder()(batch["input_ids"]).document_embedding().dtype == torch.float64


@pytest.mark.parametrize("kept", ["lm_head.weight", "model.decoder.embed_tokens.weight", "model.shared.weight"])
def test_tied_embeddings_are_found_under_each_of_their_names(kept, tmp_path):
    model = build(pooling=FIXED)
    model.config.save_pretrained(tmp_path)
    table, state = model.model.shared.weight, model.state_dict()
    tensors = {name: item for name, item in state.items() if name == kept or item.data_ptr() != table.data_ptr()}
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    for of in (AutoModel, AutoModelForSeq2SeqLM, AutoModelForTextEncoding, AutoModelForSequenceClassification):
        assert torch.equal(of.from_pretrained(tmp_path).get_input_embeddings().weight, table)


@pytest.mark.parametrize("wrong", ["attention_maks", "foo"])
def test_arguments_that_nobody_reads_are_refused(batch, wrong):
    model, given = build(pooling=FIXED), {"input_ids": batch["input_ids"], wrong: 1}
    for part in (model.get_encoder(), model.model, model):
        with pytest.raises(TypeError, match=wrong):
            part(**given)
    with pytest.raises(TypeError, match=wrong):
        model.model.decoder(**given)


def test_a_cache_is_taken_under_both_names_and_of_one_kind(batch):
    model, ids = build(pooling=FIXED), batch["labels"].clamp(min=6)
    source = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    whole = model(**source, decoder_input_ids=ids).logits[:, 5:]
    for name in ("cache", "past_key_values"):
        for kind in (EncoderDecoderCache(DynamicCache(), DynamicCache()), DynamicCache()):
            past = model(**source, decoder_input_ids=ids[:, :5], use_cache=True, **{name: kind}).past_key_values
            rest = model(**source, decoder_input_ids=ids[:, 5:], **{name: past}).logits
            torch.testing.assert_close(rest, whole, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("operator", OPERATORS)
def test_only_operators_that_score_are_sharp(operator, batch):
    model = build(pooling=[{**FIXED[0], "operator": operator}])
    statistics = statistics_of(model, batch["input_ids"], batch["attention_mask"])
    assert ("pool0_mean_top_weight" in statistics) == (operator not in ("random", "strided", "strided_mean"))
    assert len([name for name in statistics if "share" in name]) == 10


def test_config_holds_the_architecture_and_checks_it():
    architecture = Architecture(d_model=32, num_heads=2, pooling=(PoolingStage(after_layer=2, ratio=0.5),))
    config = TranspoolerConfig.from_architecture(
        architecture, vocab_size=300, pad_token_id=1, bos_token_id=0, eos_token_id=2
    )
    assert config.architecture == architecture
    assert config.decoder_start_token_id == 0
    with pytest.raises(ValueError, match=r"norm is 'middle'.*pooling\[0\].ratio is 0.3"):
        TranspoolerConfig(norm="middle", pooling=[{"after_layer": 1, "ratio": 0.3}])


def test_gates_of_the_last_stage_reach_the_scorer_only_where_no_norm_follows(batch):
    norms = {}
    for order in ("after", "before"):
        stages = [{"after_layer": 2, "length": 4, "operator": "hard"}]
        model = build(pooling=stages, norm="pre", positions="rotary", pooling_norm=order).train()
        model(**batch).loss.backward()
        norms[order] = float(model.model.encoder.poolers["2"].scorer.weight.grad.norm())
    assert norms["after"] < 1e-4 * norms["before"]


def test_a_pooled_model_pools_what_the_final_norm_of_its_blockwise_start_makes(batch):
    settings: dict[str, Any] = {"norm": "pre", "positions": "rotary"}
    plain = build(**settings)
    stages = [{"after_layer": 2, "length": 40}]  # keeps every token
    pooled = build(**settings, pooling=stages, pooling_norm="before")
    missing, unused = pooled.load_state_dict(plain.state_dict(), strict=False)
    assert {name.split(".")[-2] for name in missing} == {"scorer"}
    assert not unused
    torch.testing.assert_close(pooled(**batch).logits, plain(**batch).logits)


def test_scorers_may_begin_without_an_opinion():
    settings: dict[str, Any] = {"pooling": FIXED, "scorer_init_std": 0.0}
    model = build(**settings)
    for pooler in model.model.encoder.poolers.values():
        assert not pooler.scorer.weight.any()
    with pytest.raises(ValueError, match="scorer_init_std is -1"):
        build(scorer_init_std=-1.0)
    with pytest.raises(ValueError, match="pooling_norm is 'last'"):
        build(pooling_norm="last")


def test_the_table_of_operators_has_a_row_for_each_name():
    assert tuple(OPERATORS) == OPERATOR_NAMES
