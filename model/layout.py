"""Where the tokens of a batch lie: packed one after another, as rows of documents, or as rows of blocks.

Layers work on packed tokens, so padding costs nothing outside attention, and inside it only what completes a document's
last block. The lengths are read once per batch (one host synchronisation on a GPU); the poolers' results follow from
them. Under torch.compile nothing is read: every document counts as long as the batch, and masks do the rest.

B documents, N longest length, P packed tokens (the sum of the lengths), R blocks of m.
"""

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor


class Grid:
    """Rows of equal width of which the packed tokens fill the front."""

    def __init__(self, lengths: Sequence[int], widths: Sequence[int], columns: int, device: torch.device) -> None:
        """Document i takes `lengths[i]` tokens of its `widths[i]` places; widths are multiples of `columns`."""
        self.rows, self.columns = sum(widths) // columns, columns
        self.slots_P: Tensor | None = None  # None: nothing is padding, so a reshape does
        if list(lengths) != list(widths):
            lengths_B, widths_B = torch.tensor([lengths, widths]).to(device, non_blocking=True)
            shift_B = (widths_B - lengths_B).cumsum(0) - (widths_B - lengths_B)
            num_tokens = sum(lengths)
            shift_P = shift_B.repeat_interleave(lengths_B, output_size=num_tokens)
            self.slots_P = torch.arange(num_tokens, device=device) + shift_P

    def put(self, x: Tensor) -> Tensor:
        """(P, ...) -> (rows, columns, ...), zero where there is no token."""
        if self.slots_P is not None:
            x = x.new_zeros(self.rows * self.columns, *x.shape[1:]).index_copy(0, self.slots_P, x)
        return x.unflatten(0, (self.rows, self.columns))

    def take(self, x: Tensor) -> Tensor:
        """(rows, columns, ...) -> (P, ...)."""
        x = x.flatten(0, 1)
        return x if self.slots_P is None else x.index_select(0, self.slots_P)


class Layout:
    """The lengths of a batch's documents, and what follows from them."""

    def __init__(self, lengths: Sequence[int], block: int | None, device: torch.device, real_P: Tensor | None) -> None:
        """Lengths are at least 1; real_P bool (P,) marks tokens that are none although they are packed (None: none)."""
        self.lengths, self.real_P, self.device = list(lengths), real_P, device
        self.longest = max(self.lengths)
        self.block = min(block or self.longest, self.longest)

    @classmethod
    def of_mask(cls, mask_BN: Tensor, block: int | None) -> "tuple[Layout, Tensor]":
        """The layout of the True tokens and their indices (P,) in the flattened mask; an empty row keeps one place."""
        batch, num_tokens = mask_BN.shape
        if torch.compiler.is_compiling() or mask_BN.is_meta:
            order_BN = front_order(mask_BN)
            at_P = (order_BN + torch.arange(batch, device=mask_BN.device)[:, None] * num_tokens).flatten()
            return cls([num_tokens] * batch, block, mask_BN.device, mask_BN.flatten()[at_P]), at_P
        lengths = mask_BN.sum(1).tolist()
        if min(lengths) > 0:
            return cls(lengths, block, mask_BN.device, None), mask_BN.flatten().nonzero().squeeze(1)
        packed_BN = mask_BN.clone()
        packed_BN[:, 0] |= ~mask_BN.any(1)
        at_P = packed_BN.flatten().nonzero().squeeze(1)
        return cls([max(length, 1) for length in lengths], block, mask_BN.device, mask_BN.flatten()[at_P]), at_P

    @cached_property
    def documents(self) -> Grid:
        """(B, N)."""
        return Grid(self.lengths, [self.longest] * len(self.lengths), self.longest, self.device)

    @cached_property
    def blocks(self) -> Grid:
        """(R, m)."""
        return Grid(self.lengths, [-(-n // self.block) * self.block for n in self.lengths], self.block, self.device)

    @cached_property
    def document_mask(self) -> Tensor:
        """bool (B, N): real tokens."""
        return self.documents.put(self._real())

    @cached_property
    def block_mask(self) -> Tensor | None:
        """bool (R, 1, 1, m): the tokens to attend to, or None where every block is full."""
        if self.blocks.slots_P is None and self.real_P is None:
            return None
        return somewhere(self.blocks.put(self._real()))[:, None, None]

    def _real(self) -> Tensor:
        if self.real_P is not None:
            return self.real_P
        return torch.ones(sum(self.lengths), dtype=torch.bool, device=self.device)


def somewhere(mask: Tensor) -> Tensor:
    """The mask with rows that allow nothing opened: softmax over nothing is NaN, and what comes out is never read."""
    return mask | ~mask.any(dim=-1, keepdim=True)


def front_order(mask_BN: Tensor) -> Tensor:
    """int64 (B, N): columns of each row with its real tokens first, in order."""
    return (~mask_BN).to(torch.uint8).sort(dim=1, stable=True).indices
