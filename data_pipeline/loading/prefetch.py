"""Make items ahead of their use: in a background thread, or in worker processes. The order is the same."""

import itertools
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")

_END = object()


def prefetch(items: Iterable[Item], size: int) -> Generator[Item, None, None]:
    """Yield `items`, of which up to `size` are computed ahead by a thread.

    An exception of the producer is raised here, after the items before it. The thread ends when the iterator is closed
    or collected.
    """
    iterator = iter(items)
    pool = ThreadPoolExecutor(1, initializer=_name_thread)
    ahead = deque(pool.submit(next, iterator, _END) for _ in range(size))
    try:
        while (item := ahead.popleft().result()) is not _END:
            ahead.append(pool.submit(next, iterator, _END))
            yield item  # type: ignore[misc]
    finally:
        pool.shutdown(cancel_futures=True)


def _name_thread() -> None:
    threading.current_thread().name = "prefetch"


def in_processes(make: Callable[[int], Item], start: int, workers: int, ahead: int) -> Generator[Item, None, None]:
    """Yield make(start), make(start + 1), ... from `workers` forked processes, which compute up to `ahead` each.

    Uses torch's DataLoader: if a worker dies, a RuntimeError is raised here; the workers end with the iterator or with
    this process.
    """
    from torch.utils.data import DataLoader, Dataset

    class Items(Dataset):
        def __getitem__(self, number: int) -> Item:
            return make(number)

    loader = DataLoader(
        Items(),
        batch_size=None,
        sampler=itertools.count(start),
        num_workers=workers,
        prefetch_factor=ahead,
        multiprocessing_context="fork",  # nothing to pickle; workers touch neither CUDA nor the process group
        collate_fn=lambda item: item,
    )
    yield from loader
