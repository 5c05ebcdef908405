"""Settings of the objectives, as they reach the examples; noise is a function of (seed, epoch, key)."""

from typing import Any

import numpy as np
import pytest

from transpooler.data_pipeline.config import DataConfig
from transpooler.data_pipeline.loading.examples import Example, ExampleMaker
from transpooler.data_pipeline.shards.dataset import Document
from transpooler.data_pipeline.tokenizer import train_tokenizer

TEXT = "".join(f"Sentence {i} says that {i * 7} and {i * i} differ. " for i in range(60))


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(iter([TEXT]), 300)


@pytest.fixture(scope="module")
def document(tokenizer) -> Document:
    return Document("train-00000000", np.array(tokenizer(TEXT).input_ids, np.uint16), None, {})


@pytest.fixture
def make(tokenizer, document):
    def example(epoch: int = 1, seed: int = 0, key: str = "a", **settings) -> Example:
        limits: dict[str, Any] = {"objective": "gap_sentences", "max_source_tokens": 8192, "max_target_tokens": 8192}
        return ExampleMaker(DataConfig(**(limits | settings)), tokenizer, seed).example(document, key, epoch)

    return example


def same(left: Example, right: Example) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(left, right, strict=True))


@pytest.mark.parametrize("objective", ["denoise", "gap_sentences"])
def test_noise_depends_on_seed_epoch_and_key_alone(make, objective):
    assert same(make(objective=objective), make(objective=objective))
    for other in ({"epoch": 2}, {"seed": 1}, {"key": "b"}):
        assert not same(make(objective=objective), make(objective=objective, **other))


def test_without_noise_every_epoch_takes_the_same_sentences(make):
    assert same(make(epoch=1, gap_noise=0.0), make(epoch=2, gap_noise=0.0))


def test_gap_fraction_and_kept_fraction(make, tokenizer):
    gap = tokenizer.convert_tokens_to_ids("<gap>")
    assert [int((make(gap_fraction=share)[0] == gap).sum()) for share in (0.1, 0.5)] == [6, 30]
    assert int((make(gap_fraction=0.5, gap_kept_fraction=0.2)[0] == gap).sum()) == 24


def test_mask_fraction_and_span_length(make, tokenizer, document):
    for share, mean in ((0.1, 1.0), (0.3, 3.0), (0.5, 10.0)):
        source, target = make(objective="denoise", mask_fraction=share, mean_span_tokens=mean)
        masks = int((source == tokenizer.mask_token_id).sum())
        masked = len(document.source) - (len(source) - 1 - masks)
        assert masked == round(share * len(document.source))
        assert masked / masks == pytest.approx(mean, rel=0.35)
        assert target[:-1].tolist() == document.source.tolist()


def test_sentences_are_permuted_if_asked_for(make, document):
    source, target = make(objective="denoise", mask_fraction=0.01, permute_sentences=True)
    plain, _ = make(objective="denoise", mask_fraction=0.01)
    assert target[:-1].tolist() == document.source.tolist()
    assert sorted(source.tolist())[:1500] != source.tolist()[:1500]
    assert (source[:50] != plain[:50]).mean() > 0.5
