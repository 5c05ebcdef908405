"""Make items ahead of their use: in a background thread, or in worker processes. The order is the same."""

import itertools
import queue
import threading
from collections.abc import Callable, Generator, Iterable
from typing import TypeVar

Item = TypeVar("Item")

_POLL_S = 0.1  # how soon the thread notices that nobody listens any more


class _Failure:
    def __init__(self, error: BaseException) -> None:
        self.error = error


_END = object()


def prefetch(items: Iterable[Item], size: int) -> Generator[Item, None, None]:
    """Yield `items`, of which up to `size` are computed ahead by a thread.

    An exception of the producer is raised here, after the items before it. The thread ends when the iterator is closed
    or collected.
    """
    ready: queue.Queue[object] = queue.Queue(maxsize=size)
    stop = threading.Event()

    def put(item: object) -> bool:
        while not stop.is_set():
            try:
                ready.put(item, timeout=_POLL_S)
                return True
            except queue.Full:
                continue
        return False

    def produce() -> None:
        try:
            for item in items:
                if not put(item):
                    return
            put(_END)
        except BaseException as error:  # handed on: whatever it is, the consumer must see it
            put(_Failure(error))

    thread = threading.Thread(target=produce, name="prefetch", daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not _END:
            if isinstance(item, _Failure):
                raise item.error
            yield item  # type: ignore[misc]
    finally:
        stop.set()
        thread.join()


def in_processes(make: Callable[[int], Item], start: int, workers: int, ahead: int) -> Generator[Item, None, None]:
    """Yield make(start), make(start + 1), ... made in `workers` forked processes, up to `ahead` each.

    torch's DataLoader does it: a worker that dies is a RuntimeError here, and the workers end with the iterator or
    with this process.
    """
    from torch.utils.data import DataLoader, Dataset

    class Made(Dataset):
        def __getitem__(self, number: int) -> Item:
            return make(number)

    loader = DataLoader(
        Made(),
        batch_size=None,
        sampler=itertools.count(start),
        num_workers=workers,
        prefetch_factor=ahead,
        multiprocessing_context="fork",  # nothing to pickle; workers touch neither CUDA nor the process group
        collate_fn=_unchanged,
    )
    yield from loader


def _unchanged(item: Item) -> Item:
    return item
