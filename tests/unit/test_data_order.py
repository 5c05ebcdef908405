"""Order: every document once an epoch, resumable anywhere, like lengths together."""

import numpy as np
import pytest

from data_pipeline.order import Order, global_batch, steps_per_epoch


def lengths_of(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(10, 9000, count)


@pytest.mark.parametrize(("count", "batch_size", "bucket_batches"), [(100, 8, 4), (7, 8, 4), (64, 8, 1), (65, 16, 100)])
def test_each_document_once_an_epoch(count, batch_size, bucket_batches):
    order = Order(lengths_of(count), batch_size=batch_size, bucket_batches=bucket_batches, seed=3)
    steps = steps_per_epoch(count, batch_size)
    epochs = [[order.batch(step) for step in range(e * steps, (e + 1) * steps)] for e in range(2)]
    for batches in epochs:
        assert sorted(np.concatenate(batches).tolist()) == list(range(count))
        assert [len(batch) for batch in batches[:-1]] == [batch_size] * (steps - 1)
    if steps > 1:
        assert np.concatenate(epochs[0]).tolist() != np.concatenate(epochs[1]).tolist()


def test_any_step_alone_equals_the_same_step_in_passing():
    lengths = lengths_of(50)
    order = Order(lengths, batch_size=8, bucket_batches=3, seed=-1)
    passing = [order.batch(step).tolist() for step in range(20)]
    alone = [global_batch(lengths, batch_size=8, bucket_batches=3, seed=-1, step=s).tolist() for s in range(20)]
    assert passing == alone
    assert global_batch(lengths, batch_size=8, bucket_batches=3, seed=0, step=0).tolist() != passing[0]


def test_buckets_put_like_lengths_together():
    lengths = lengths_of(2000)

    def padding_share(bucket_batches: int) -> float:
        order = Order(lengths, batch_size=16, bucket_batches=bucket_batches, seed=0)
        batches = [lengths[order.batch(step)] for step in range(order.steps_per_epoch)]
        padded = sum(batch.max() * len(batch) for batch in batches)
        return 1 - lengths.sum() / padded

    assert padding_share(32) < 0.05
    assert padding_share(1) > 0.3
