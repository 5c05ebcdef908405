"""Reading ahead: order kept, errors handed on, the thread gone afterwards."""

import itertools
import threading

import pytest

from transpooler.data_pipeline.loading.prefetch import prefetch


def num_threads() -> int:
    return sum(thread.name == "prefetch" for thread in threading.enumerate())


def test_items_arrive_in_order():
    assert list(prefetch(range(50), 3)) == list(range(50))


def test_an_error_arrives_after_the_items_before_it():
    def items():
        yield 1
        raise OSError("disk gone")

    stream = prefetch(items(), 2)
    assert next(stream) == 1
    with pytest.raises(OSError, match="disk gone"):
        next(stream)


def test_closing_stops_the_thread():
    before = num_threads()
    stream = prefetch(itertools.count(), 2)
    next(stream)
    assert num_threads() == before + 1
    stream.close()
    assert num_threads() == before
