"""Work that ranks share and whose results are gathered in order, so that they do not depend on the number of ranks."""

import os
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar

import torch

Item = TypeVar("Item")


class Ranks(NamedTuple):
    """This process among those that share the work; a single one needs no process group."""

    rank: int = 0
    size: int = 1

    def share(self, items: Sequence[Item]) -> list[tuple[int, Item]]:
        """This rank's items, every `size`-th, with their numbers."""
        return list(enumerate(items))[self.rank :: self.size]

    def gather_in_order(self, results: Sequence[tuple[int, Any]]) -> list[Any]:
        """Results of all ranks in the order of their numbers, on every rank. A collective."""
        if self.size == 1:
            return [value for _, value in results]
        parts: list[Any] = [None] * self.size
        torch.distributed.all_gather_object(parts, list(results))
        return [value for _, value in sorted((pair for part in parts for pair in part), key=lambda pair: pair[0])]


ALONE = Ranks()


def ranks_of_environment() -> int:
    """How many ranks the launcher started (WORLD_SIZE); 1 without one."""
    return int(os.environ.get("WORLD_SIZE", "1"))
