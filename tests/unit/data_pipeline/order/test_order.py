"""Order: every document once an epoch, any step alone at once, like lengths together, mixtures by weight."""

import numpy as np
import pytest

from transpooler.data_pipeline.order.mixture import PERIOD, BatchOrder
from transpooler.data_pipeline.order.order import MIN_CLASS_CHUNKS, CorpusOrder, Cut, cut_classes
from transpooler.data_pipeline.order.permutation import key_of, permute

FEW = Cut(documents=8, width=0.05)
TOKENS = Cut(tokens=20_000, width=0.05)


def lengths_of(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(10, 9000, count).astype(np.uint16)


def corpus(count: int, cut: Cut, seed: int = 3, **values) -> CorpusOrder:
    return CorpusOrder(lengths_of(count), cut, seed=seed, **values)


def epoch_of(order: CorpusOrder, epoch: int) -> list[np.ndarray]:
    return [order.chunk(epoch, position) for position in range(order.num_chunks)]


@pytest.mark.parametrize("size", [1, 2, 3, 5, 16, 17, 1000])
def test_permute_is_a_permutation_and_keys_differ(size):
    images = [permute(np.arange(size), size, key).tolist() for key in range(4)]
    assert all(sorted(image) == list(range(size)) for image in images)
    assert size < 16 or len(set(map(tuple, images))) == 4


@pytest.mark.parametrize("size", [17, 100, 4097])
def test_permute_of_many_is_permute_of_each(size):
    index = np.arange(size)
    assert permute(index, size, 5).tolist() == [int(permute(index[i : i + 1], size, 5)[0]) for i in range(size)]


def test_permute_puts_every_item_everywhere():
    counts = np.zeros((5, 5))
    for key in range(3000):
        counts[np.arange(5), permute(np.arange(5), 5, key_of(key))] += 1
    assert counts.min() > 500
    assert counts.max() < 700


def test_the_order_is_the_same_for_ever():
    """Resuming after an upgrade of Python or numpy must not change what a run reads: a record of what was."""
    assert permute(np.arange(8), 8, 1).tolist() == PINNED_PERMUTATION
    assert [chunk.tolist() for chunk in epoch_of(corpus(10, Cut(documents=4)), 1)] == PINNED_EPOCH


PINNED_PERMUTATION = [1, 4, 5, 6, 0, 2, 3, 7]
PINNED_EPOCH = [[8, 0], [6, 2, 3, 1], [9, 7, 4, 5]]


@pytest.mark.parametrize("cut", [FEW, TOKENS, Cut(documents=8), Cut(documents=1)])
@pytest.mark.parametrize("count", [1, 7, 64, 1003])
@pytest.mark.parametrize("shards", [None, 1, 3])
def test_each_document_once_an_epoch(cut, count, shards):
    documents = np.bincount(np.arange(count) * 10 // count, minlength=10).tolist()
    order = corpus(count, cut, shard_documents=documents, shuffle_shards=shards)
    epochs = [np.concatenate(epoch_of(order, epoch)).tolist() for epoch in range(3)]
    assert all(sorted(epoch) == list(range(count)) for epoch in epochs)
    assert count < 64 or len(set(map(tuple, epochs))) == 3


def test_any_step_alone_equals_the_same_step_in_passing():
    def batch(order: BatchOrder, step: int) -> list:
        return [(chunk.epoch, chunk.numbers.tolist()) for chunk in order.batch(step)]

    passing = BatchOrder([corpus(300, TOKENS)], [1], 3)
    whole = [batch(passing, step) for step in range(150)]
    for step in (149, 0, 77):
        assert batch(BatchOrder([corpus(300, TOKENS)], [1], 3), step) == whole[step]
    assert batch(BatchOrder([corpus(300, TOKENS, seed=4)], [1], 3), 0) != whole[0]


def test_only_one_batch_of_documents_is_not_full():
    sizes = [len(chunk) for chunk in epoch_of(corpus(1003, FEW), 0)]
    assert sorted(sizes) == [3] + [8] * 125


def test_chunks_keep_to_the_budget_and_the_padding_stays_small():
    lengths = lengths_of(4000)
    order = CorpusOrder(lengths, TOKENS, seed=0)
    padded = [int(lengths[chunk].max()) * len(chunk) for chunk in epoch_of(order, 0)]
    assert max(padded) <= 20_000
    assert np.median(padded) > 15_000
    assert 1 - lengths.sum(dtype=np.int64) / sum(padded) < 0.04
    unsorted = CorpusOrder(lengths, Cut(tokens=20_000), seed=0)
    padded = [int(lengths[chunk].max()) * len(chunk) for chunk in epoch_of(unsorted, 0)]
    assert 1 - lengths.sum(dtype=np.int64) / sum(padded) > 0.2


def test_companions_change_from_epoch_to_epoch():
    order = corpus(2000, FEW)
    first, second = ({frozenset(chunk.tolist()) for chunk in epoch_of(order, epoch)} for epoch in (0, 1))
    assert len(first & second) < 5


def test_classes_cover_all_and_hold_several_chunks():
    lengths = np.sort(lengths_of(5000))
    classes = cut_classes(lengths, FEW)
    assert [start for start, _, _ in classes] == [0, *[stop for _, stop, _ in classes[:-1]]]
    assert classes[-1][1] == 5000
    assert all(stop - start >= MIN_CLASS_CHUNKS * 8 and (stop - start) % 8 == 0 for start, stop, _ in classes[1:])
    assert len(classes) > 20


def test_documents_stay_with_the_shards_of_their_group():
    order = corpus(1000, FEW, shard_documents=[100] * 10, shuffle_shards=2)
    for epoch in (0, 1):
        shards = [set((chunk // 100).tolist()) for chunk in epoch_of(order, epoch)]
        groups = [set.union(*shards[first : first + 25]) for first in range(0, 125, 25)]
        assert [len(group) for group in groups] == [2] * 5
    assert order.chunk(0, 0).tolist() != order.chunk(1, 0).tolist()


def test_short_documents_come_first_where_asked_for():
    lengths = lengths_of(2000)
    order = CorpusOrder(lengths, FEW, seed=0, short_first_epochs=1)
    means = [[lengths[chunk].mean() for chunk in epoch_of(order, epoch)] for epoch in (0, 1)]
    assert np.corrcoef(means[0], np.arange(len(means[0])))[0, 1] > 0.95
    assert abs(np.corrcoef(means[1], np.arange(len(means[1])))[0, 1]) < 0.3


def test_a_mixture_keeps_to_its_weights_and_to_epochs_of_each_corpus():
    corpora = [corpus(90, Cut(documents=1)), corpus(400, Cut(documents=1))]
    order = BatchOrder(corpora, [3, 1], 8)
    chunks = [chunk for step in range(150) for chunk in order.batch(step)]
    assert len(chunks) == 1200
    assert sum(chunk.corpus == 0 for chunk in chunks) == pytest.approx(900, abs=2)
    assert {sum(chunk.corpus == 0 for chunk in order.batch(step)) for step in range(50)} == {6}
    for number, size in ((0, 90), (1, 400)):
        read = [chunk for chunk in chunks if chunk.corpus == number]
        for epoch in range(len(read) // size):
            part = read[epoch * size : (epoch + 1) * size]
            assert {chunk.epoch for chunk in part} == {epoch}
            assert sorted(int(chunk.numbers[0]) for chunk in part) == list(range(size))


def test_a_mixture_goes_on_beyond_the_period_of_its_weights():
    order = BatchOrder([corpus(700, Cut(documents=1)), corpus(900, Cut(documents=1))], [2, 1], 8)
    chunks = [chunk for step in range(2 * PERIOD // 8) for chunk in order.batch(step)]
    first = [chunk for chunk in chunks if chunk.corpus == 0]
    for epoch in range(7):
        part = first[700 * epoch : 700 * (epoch + 1)]
        assert {chunk.epoch for chunk in part} == {epoch}
        assert len({int(chunk.numbers[0]) for chunk in part}) == 700
    steps = {chunk.epoch: number // 8 for number, chunk in reversed(list(enumerate(chunks))) if chunk.corpus == 0}
    assert order.epoch(PERIOD // 8 + 100) == max(epoch for epoch, step in steps.items() if step < PERIOD // 8 + 100)


def test_a_small_weight_gets_its_turn():
    order = BatchOrder([corpus(50, Cut(documents=1))] * 3, [1e-9, 1, 5], 1)
    turns = [order.batch(step)[0].corpus for step in range(PERIOD)]
    assert turns.count(0) == 1
    assert turns.count(2) / turns.count(1) == pytest.approx(5, rel=0.01)


def test_the_plan_takes_about_four_bytes_a_document():
    assert corpus(100_000, TOKENS).nbytes < 5 * 100_000
