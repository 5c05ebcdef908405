"""Errors of one rank become errors of all: none is left waiting in a collective for a rank that has gone."""

from collections.abc import Callable
from typing import TypeVar

import torch

from transpooler.common.errors import UserError

Value = TypeVar("Value")


def raise_on_all_ranks(error: UserError | None) -> None:
    """A collective: if any rank has an error, raise the first one's message on all of them."""
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
