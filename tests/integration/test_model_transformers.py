"""The model among `transformers`' own: loading, saving, outputs, attention functions, training with its Trainer."""

import copy
import pickle
from typing import Any

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSeq2SeqLM,
    AutoModelForTextEncoding,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
)
from transformers.modeling_outputs import BaseModelOutput

from tests.unit.model.test_model import FIXED, LENGTHS, build
from transpooler.model import (
    TranspoolerConfig,
    TranspoolerEncoder,
    TranspoolerForConditionalGeneration,
    TranspoolerModel,
)


@pytest.fixture
def batch(inputs):
    labels = torch.randint(6, 300, (3, 7), generator=torch.Generator().manual_seed(2))
    return {**inputs, "labels": labels}


def same(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_auto_classes_find_config_model_and_encoder(model, batch, inputs, tmp_path):
    model.save_pretrained(tmp_path)
    assert type(AutoConfig.from_pretrained(tmp_path)) is TranspoolerConfig
    assert type(AutoModelForSeq2SeqLM.from_pretrained(tmp_path)) is TranspoolerForConditionalGeneration
    base = AutoModel.from_pretrained(tmp_path).eval()
    assert type(base) is TranspoolerModel
    decoder_ids = batch["labels"]
    same(base(**inputs, decoder_input_ids=decoder_ids)[0] @ model.lm_head.weight.T,
         model(**inputs, decoder_input_ids=decoder_ids).logits)  # fmt: skip
    encoder = AutoModelForTextEncoding.from_pretrained(tmp_path).eval()
    assert type(encoder) is TranspoolerEncoder
    assert torch.equal(encoder(**inputs)[0], model.model.encoder(**inputs)[0])


def test_the_encoder_alone_is_saved_and_loaded(model, inputs, tmp_path):
    encoder = TranspoolerEncoder.from_pretrained(_saved(model, tmp_path / "whole")).eval()
    again, info = TranspoolerEncoder.from_pretrained(_saved(encoder, tmp_path / "encoder"), output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert torch.equal(again.eval()(**inputs)[0], encoder(**inputs)[0])


def test_weights_are_saved_once_and_tied_after_loading(model, batch, tmp_path):
    from safetensors import safe_open

    model.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        embeddings = [name for name in file.keys() if "embed_tokens" in name or "shared" in name or "lm_head" in name]  # noqa: SIM118
    assert embeddings == ["model.shared.weight"]
    loaded, info = AutoModelForSeq2SeqLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    tied = [loaded.lm_head, loaded.model.shared, loaded.model.encoder.embed_tokens, loaded.model.decoder.embed_tokens]
    assert all(part.weight is loaded.model.shared.weight for part in tied)
    assert torch.equal(loaded.eval()(**batch).logits, model(**batch).logits)


def test_config_round_trip(model, tmp_path):
    model.config.save_pretrained(tmp_path)
    loaded = TranspoolerConfig.from_pretrained(tmp_path)
    assert loaded.to_dict() == model.config.to_dict()
    assert loaded.architecture == model.config.architecture
    assert loaded.hidden_size == 32
    assert loaded.get_text_config(decoder=True).num_hidden_layers == 3


def test_copies_and_pickles_compute_the_same(model, batch):
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(**batch).logits, model(**batch).logits)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(model, batch, tmp_path, dtype):
    half = AutoModelForSeq2SeqLM.from_pretrained(_saved(model, tmp_path), dtype=dtype).eval()
    assert half.dtype == dtype
    logits = half(**batch).logits
    assert logits.dtype == dtype
    # Loose: the choice of tokens itself may change where scores are close.
    assert torch.nn.functional.cosine_similarity(logits.float(), model(**batch).logits, dim=-1).mean() > 0.95
    half.train()(**batch).loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in half.parameters())
    ids = half.eval().generate(**{k: batch[k] for k in ("input_ids", "attention_mask")}, max_new_tokens=5, num_beams=2)
    assert ids.shape[0] == 3


def test_device_map(model, batch, tmp_path):
    placed = AutoModelForSeq2SeqLM.from_pretrained(_saved(model, tmp_path), device_map="cpu").eval()
    assert torch.equal(placed(**batch).logits, model(**batch).logits)


@pytest.mark.parametrize("new_size", [310, 250])
def test_resized_embeddings_stay_tied(model, batch, new_size, tmp_path):
    batch = {name: part.clamp(max=249) for name, part in batch.items()}
    before = model(**batch).logits
    model.resize_token_embeddings(new_size)
    assert model.config.vocab_size == model.lm_head.out_features == new_size
    assert model.lm_head.weight is model.model.encoder.embed_tokens.weight
    same(model(**batch).logits[..., :250], before[..., :250])
    loaded = AutoModelForSeq2SeqLM.from_pretrained(_saved(model, tmp_path)).eval()
    assert loaded(**batch).logits.shape[-1] == new_size


def test_inputs_embeds_stand_for_ids(model, batch):
    expected = model(**batch).logits
    embeds = model.get_input_embeddings()(batch.pop("input_ids"))
    same(model(**batch, inputs_embeds=embeds).logits, expected)
    decoder_ids = model.prepare_decoder_input_ids_from_labels(batch["labels"])
    decoder_embeds = model.get_input_embeddings()(decoder_ids)
    same(model(**batch, inputs_embeds=embeds, decoder_inputs_embeds=decoder_embeds).logits, expected)


def test_given_encoder_outputs_are_used_in_every_form(model, batch):
    expected, encoded = model(**batch).logits, model.get_encoder()(batch.pop("input_ids"), batch["attention_mask"])
    forms = (encoded, encoded.to_tuple(), BaseModelOutput(last_hidden_state=encoded[0]), (encoded[0],))
    for form in forms:
        assert torch.equal(model(**batch, encoder_outputs=form).logits, expected)


def test_shapes_of_hidden_states_and_attentions(model, batch):
    out = model(**batch, output_hidden_states=True, output_attentions=True)
    after = {"post": (40, 16, 4), "pre": (40, 20, 5)}[model.config.norm]
    assert [tuple(part.shape) for part in out.encoder_hidden_states] == [(3, n, 32) for n in after]
    assert out.encoder_hidden_states[-1] is out.encoder_last_hidden_state
    assert [tuple(part.shape) for part in out.encoder_attentions] == [(3, 2, n, 8) for n in after[:-1]]
    assert [tuple(part.shape) for part in out.decoder_attentions] == [(3, 2, 7, 7)] * 3
    assert [tuple(part.shape) for part in out.cross_attentions] == [(3, 2, 7, after[-1])] * 3
    assert len(out.decoder_hidden_states) == 4
    for row, length in enumerate(LENGTHS):
        sums = out.encoder_attentions[0][row].sum(-1)
        same(sums[:, :length], torch.ones(2, length))
        assert not sums[:, length:].any()
    same(out.logits, model(**batch).logits)


def test_sdpa_and_eager_agree(model, batch):
    gradients = []
    for name in ("sdpa", "eager"):
        model.set_attn_implementation(name)
        assert model.config._attn_implementation == name
        gradients.append(torch.autograd.grad(model(**batch).loss, list(model.parameters())))
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-3)


def test_left_padded_targets_train(model, batch):
    mask = torch.ones(3, 7, dtype=torch.int64)
    mask[1, :3] = 0
    ids = model.prepare_decoder_input_ids_from_labels(batch["labels"])
    arguments = {**batch, "decoder_input_ids": ids, "decoder_attention_mask": mask}
    loss = model(**arguments).loss
    changed = ids.clone()
    changed[1, :3] = 9
    later = model(**arguments | {"decoder_input_ids": changed}).logits[1, 3:]
    same(later, model(**arguments).logits[1, 3:])
    loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_tuples_instead_of_outputs(model, batch):
    out = model(**batch)
    loss, logits, *_ = model(**batch, return_dict=False)
    assert torch.equal(loss, out.loss)
    assert torch.equal(logits, out.logits)
    model.config.return_dict = False
    assert isinstance(model(**batch), tuple)


def test_ignored_labels_are_ignored(model, batch):
    labels = torch.cat([batch["labels"], torch.full((3, 5), -100)], dim=1)
    same(model(**batch | {"labels": labels}).loss, model(**batch).loss)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_gradient_checkpointing_switch(model, batch, use_reentrant):
    model.train()
    parameters = list(model.parameters())
    plain = torch.autograd.grad(model(**batch).loss, parameters)
    model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    model.enable_input_require_grads()
    assert model.is_gradient_checkpointing
    model(**batch).loss.backward()
    for gradient, parameter in zip(plain, parameters, strict=True):
        # Reentrant checkpointing adds the gradients of what several layers read in another order.
        assert torch.equal(gradient, parameter.grad) or use_reentrant
        same(gradient, parameter.grad)
    model.gradient_checkpointing_disable()
    assert not model.is_gradient_checkpointing


def test_seq2seq_trainer_trains_it_unchanged(tmp_path):
    generator = torch.Generator().manual_seed(3)
    rows: Any = [
        {"input_ids": torch.randint(6, 300, (length,), generator=generator), "labels": torch.tensor([7, 8, 9, 2])}
        for length in (40, 25, 12, 33, 8, 40, 21, 17)
    ]
    model = build(pooling=FIXED)
    arguments = Seq2SeqTrainingArguments(
        output_dir=str(tmp_path),
        max_steps=10,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        gradient_checkpointing=True,
        learning_rate=1e-2,
        logging_steps=1,
        predict_with_generate=True,
        generation_max_length=5,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        save_strategy="no",
    )
    trainer = Seq2SeqTrainer(model, arguments, train_dataset=rows, eval_dataset=rows[:2], data_collator=collate)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0] / 2
    assert len(trainer.predict(rows[:2]).predictions) == 2


def collate(rows):
    longest = max(len(row["input_ids"]) for row in rows)
    pad = torch.nn.functional.pad
    ids = torch.stack([pad(row["input_ids"], (0, longest - len(row["input_ids"])), value=1) for row in rows])
    return {"input_ids": ids, "attention_mask": (ids != 1).long(), "labels": torch.stack([r["labels"] for r in rows])}


def _saved(model, folder):
    model.save_pretrained(folder)
    return folder
