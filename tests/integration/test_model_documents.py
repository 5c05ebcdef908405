"""The encoder without a decoder: documents as vectors, and a label for each."""

from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTextEncoding,
    Trainer,
    TrainingArguments,
    pipeline,
)

from tests.integration.test_model_generate import tokenizer_of_letters
from tests.integration.test_model_transformers import collate
from tests.unit.model.test_model import FIXED, LENGTHS, TINY
from transpooler.model import TranspoolerConfig, TranspoolerEncoder, TranspoolerForSequenceClassification


def classifier(**settings):
    torch.manual_seed(0)
    return TranspoolerForSequenceClassification(TranspoolerConfig(**TINY | {"pooling": FIXED, **settings})).eval()


def test_an_embedding_is_the_mean_of_what_was_kept(model, inputs):
    encoder = model.get_encoder()
    outputs = encoder(**inputs)
    embeddings = outputs.document_embedding()
    assert embeddings.shape == (3, 32)
    for row, (length, kept) in enumerate(zip(LENGTHS, outputs.attention_mask.sum(1).tolist(), strict=True)):
        alone = encoder(inputs["input_ids"][row : row + 1, :length])
        torch.testing.assert_close(alone.last_hidden_state[0].mean(0), embeddings[row], atol=1e-5, rtol=1e-5)
        assert alone.last_hidden_state.shape[1] == kept
    nothing = encoder(inputs["input_ids"], torch.zeros_like(inputs["attention_mask"]))
    assert not nothing.document_embedding().any()
    half = encoder.bfloat16()(**inputs)
    assert half.document_embedding().dtype == torch.bfloat16


def test_embeddings_find_a_document_again(model, inputs, tmp_path):
    """As in model/README.md: a document with some words changed is nearest to itself."""
    model.save_pretrained(tmp_path)
    encoder = AutoModelForTextEncoding.from_pretrained(tmp_path).eval()
    changed = inputs["input_ids"].clone()
    changed[:, 2] = 9
    index, queries = (
        torch.nn.functional.normalize(
            encoder(ids, inputs["attention_mask"]).document_embedding(), dim=-1
        )
        for ids in (inputs["input_ids"], changed)
    )  # fmt: skip
    assert (queries @ index.T).argmax(1).tolist() == [0, 1, 2]


def test_a_classifier_starts_from_a_pretrained_model_and_from_itself(model, inputs, tmp_path):
    model.save_pretrained(tmp_path / "whole")
    fresh, info = AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "whole", num_labels=4, output_loading_info=True
    )
    assert type(fresh) is TranspoolerForSequenceClassification
    assert set(info["missing_keys"]) == {"classifier.weight", "classifier.bias"}
    assert not info["unexpected_keys"]
    fresh.eval().save_pretrained(tmp_path / "own")
    embeddings = model.get_encoder()(**inputs).document_embedding()
    assert torch.equal(fresh(**inputs).logits, fresh.classifier(embeddings))
    again, info = AutoModelForSequenceClassification.from_pretrained(tmp_path / "own", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert torch.equal(again.eval()(**inputs).logits, fresh(**inputs).logits)
    encoder = TranspoolerEncoder.from_pretrained(tmp_path / "own").eval()
    assert torch.equal(encoder(**inputs)[0], fresh.model(**inputs)[0])
    encoder.save_pretrained(tmp_path / "encoder")
    from_encoder = AutoModelForSequenceClassification.from_pretrained(tmp_path / "encoder")
    assert torch.equal(from_encoder.eval().model(**inputs)[0], fresh.model(**inputs)[0])


@pytest.mark.parametrize(
    ("settings", "labels"),
    [
        ({"num_labels": 3}, torch.tensor([0, 2, 1])),
        ({"num_labels": 1}, torch.tensor([0.5, 2.0, -1.0])),
        ({"num_labels": 2, "problem_type": "multi_label_classification"}, torch.tensor([[0.0, 1.0], [1, 1], [0, 0]])),
    ],
)
def test_losses_are_those_of_the_library(inputs, settings, labels):
    model = classifier(**settings)
    out = model(**inputs, labels=labels, output_hidden_states=True, output_attentions=True)
    functional = torch.nn.functional
    expected = {
        3: lambda: functional.cross_entropy(out.logits, labels),
        1: lambda: functional.mse_loss(out.logits.squeeze(1), labels),
        2: lambda: functional.binary_cross_entropy_with_logits(out.logits, labels),
    }[settings["num_labels"]]()
    torch.testing.assert_close(out.loss, expected)
    assert len(out.hidden_states) == 3
    assert len(out.attentions) == 2
    loss, logits, *_ = model(**inputs, labels=labels, return_dict=False)
    torch.testing.assert_close(loss, out.loss)
    torch.testing.assert_close(logits, out.logits)
    out.loss.backward()
    scorers = [part for name, part in model.named_parameters() if "scorer.weight" in name]
    assert len(scorers) == 2
    assert all(part.grad is not None and part.grad.any() for part in scorers)


def test_the_trainer_teaches_it_to_tell_documents_apart(tmp_path):
    """The label is whether a certain word occurs anywhere: the poolers must keep it."""
    generator = torch.Generator().manual_seed(3)
    rows: Any = []
    for number in range(64):
        ids = torch.randint(10, 300, (30,), generator=generator)
        if number % 2:
            ids[int(torch.randint(30, (), generator=generator))] = 7
        rows.append({"input_ids": ids, "labels": torch.tensor(number % 2)})
    model = classifier(num_labels=2, init_std=0.1)
    arguments = TrainingArguments(
        output_dir=str(tmp_path), max_steps=60, per_device_train_batch_size=16, learning_rate=5e-3, seed=1,
        report_to=[], use_cpu=True, disable_tqdm=True, save_strategy="no",
    )  # fmt: skip
    trainer = Trainer(model, arguments, train_dataset=rows, data_collator=collate)
    trainer.train()
    logits: Any = trainer.predict(rows).predictions
    predicted = logits.argmax(-1).tolist()
    assert sum(guess == int(row["labels"]) for guess, row in zip(predicted, rows, strict=True)) >= 60


def test_the_text_classification_pipeline():
    model = classifier(num_labels=2, id2label={0: "dull", 1: "bright"})
    labelled = pipeline("text-classification", model=model, tokenizer=tokenizer_of_letters())
    (first, second) = labelled(["a b c d e f g h " * 4, "a"])
    assert {first["label"], second["label"]} <= {"dull", "bright"}


def test_a_classifier_has_no_decoder():
    names = [name for name, _ in classifier(num_labels=2).named_parameters()]
    assert not [name for name in names if "decoder" in name or "lm_head" in name]
