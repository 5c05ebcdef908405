"""Between ranks: errors of one become errors of all, sums, and work that they share."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import torch

from transpooler.common import UserError

Value = TypeVar("Value")


class Ranks(NamedTuple):
    """This process among those that share work; a single one needs no process group.

    Results are gathered in order, so that they do not depend on the number of ranks.
    """

    rank: int = 0
    size: int = 1

    def share(self, items: Sequence[Value]) -> list[tuple[int, Value]]:
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


def sum_over_ranks(values: Sequence[float], device: torch.device) -> list[float]:
    """Each value summed over all ranks in float64, on every rank. A collective."""
    tensor = torch.tensor(list(values), dtype=torch.float64, device=device)
    torch.distributed.all_reduce(tensor)
    return tensor.tolist()


def raise_on_all_ranks(error: UserError | None) -> None:
    """A collective: if any rank has an error, raise the first one's message on all of them.

    So none is left waiting in a collective for a rank that has gone.
    """
    messages: list[str | None] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(messages, None if error is None else str(error))
    for rank, message in enumerate(messages):
        if message is not None:
            where = f" (rank {rank})" if len(messages) > 1 else ""
            raise UserError(f"{message}{where}")


def run_on_all_ranks(make: Callable[[], Value]) -> Value:
    """A collective: `make()`, or a UserError on all ranks if it raised one on any."""
    error: UserError | None = None
    try:
        value = make()
    except UserError as caught:
        error = caught
    raise_on_all_ranks(error)
    return value
