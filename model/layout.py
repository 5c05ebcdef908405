"""Where the tokens of a batch lie: packed one after another, as rows of documents, or as rows of blocks.

Layers work on packed tokens, so padding costs nothing outside attention, and inside it only what completes a document's
last block. The lengths are read once per batch (one host synchronisation on a GPU); the poolers' results follow from
them. Under torch.compile no length is read: every document is treated as full, and masks do the rest.

B documents, N longest length, P packed tokens (the sum of the lengths), R blocks of m.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from transpooler.model.ops.soft_topk.tournament import front_order


class Grid:
    """Rows of equal width of which the packed tokens fill the front, or what follows a few empty places."""

    def __init__(
        self,
        lengths: Sequence[int],
        widths: Sequence[int],
        columns: int,
        device: torch.device,
        leads: Sequence[int] | None = None,
    ) -> None:
        """Document i takes `lengths[i]` of its `widths[i]` places, from place `leads[i]` on (None: from the first).

        Widths are multiples of `columns`.
        """
        self.rows, self.columns = sum(widths) // columns, columns
        self.slots_P: Tensor | None = None  # None: there is no padding, so a reshape suffices
        if list(lengths) != list(widths):
            num_tokens = sum(lengths)
            self.slots_P = torch.arange(num_tokens, device=device)
            leads = leads or [0] * len(lengths)
            if len(lengths) == 1:
                self.slots_P += leads[0]
            else:
                lengths_B, widths_B, leads_B = torch.tensor([lengths, widths, leads]).to(device, non_blocking=True)
                shift_B = (widths_B - lengths_B).cumsum(0) - (widths_B - lengths_B) + leads_B
                self.slots_P += shift_B.repeat_interleave(lengths_B, output_size=num_tokens)

    def to_rows(self, x: Tensor) -> Tensor:
        """(P, ...) -> (rows, columns, ...), zero where there is no token."""
        if self.slots_P is not None:
            x = x.new_zeros(self.rows * self.columns, *x.shape[1:]).index_copy(0, self.slots_P, x)
        return x.unflatten(0, (self.rows, self.columns))

    def to_tokens(self, x: Tensor) -> Tensor:
        """(rows, columns, ...) -> (P, ...)."""
        x = x.flatten(0, 1)
        return x if self.slots_P is None else x.index_select(0, self.slots_P)


@dataclass(kw_only=True)
class Piece:
    """Packed tokens of whole blocks that follow one another: as much as a layer needs to know."""

    start: int
    end: int
    """They are the packed tokens [start, end)."""
    block: int
    blocks: Grid
    """(R, m)."""
    block_mask: Tensor | None
    """bool (R, 1, 1, m): the tokens to attend to, or None where every block is full."""


class Layout:
    """The lengths of a batch's documents, and what follows from them."""

    def __init__(
        self,
        lengths: Sequence[int],
        block: int | None,
        device: torch.device,
        mask_BN: Tensor | None = None,
        first: int | None = None,
    ) -> None:
        """Lengths are at least 1; mask_BN bool: which of the tokens are real (None: all), filled from the front.

        first: tokens of a document's first block, at most `block` (None: as many as that).
        """
        self.lengths, self.longest = list(lengths), max(lengths)
        self.block, self.device, self.whole_block = min(block or self.longest, self.longest), device, block
        self.lead = 0 if first is None or first >= self.block else self.block - first
        """Empty places before the first token of each document, where its first block is a short one."""
        self.documents = Grid(self.lengths, [self.longest] * len(self.lengths), self.longest, device)
        """(B, N)."""
        self.blocks = self._block_grid(self.lengths, [self.lead] * len(self.lengths))
        """(R, m)."""
        self.all_real = mask_BN is None
        real_P = torch.ones(sum(self.lengths), dtype=torch.bool, device=device)
        self.document_mask = self.documents.to_rows(real_P) if mask_BN is None else mask_BN
        """bool (B, N): real tokens."""
        self.block_mask: Tensor | None = None
        """bool (R, 1, 1, m): the tokens to attend to, or None where every block is full."""
        if mask_BN is not None or self.blocks.slots_P is not None:
            real_P = real_P if mask_BN is None else self.documents.to_tokens(mask_BN)
            self.block_mask = open_empty_rows(self.blocks.to_rows(real_P))[:, None, None]

    def staggered(self) -> "Layout":
        """Return the layout of the same tokens whose blocks begin half a block earlier: the first one is a half."""
        if self.whole_block is None:
            return self
        mask_BN = None if self.all_real else self.document_mask
        first = self.whole_block - self.whole_block // 2
        return Layout(self.lengths, self.whole_block, self.device, mask_BN, first)

    def pieces(self, num_tokens: int) -> Iterator[Piece]:
        """Cut the packed tokens at borders of blocks, into pieces of at most `num_tokens`, or of one block."""
        lengths: list[int] = []
        leads: list[int] = []
        start = end = row = 0

        def piece() -> Piece:
            grid = self._block_grid(lengths, leads)
            mask = None if self.block_mask is None else self.block_mask[row : row + grid.rows]
            return Piece(start=start, end=end, block=self.block, blocks=grid, block_mask=mask)

        for length in self.lengths:
            done = 0
            while done < length:
                room = (num_tokens - (end - start)) // self.block * self.block
                if room <= 0 and lengths:
                    yield (full := piece())
                    row, start, lengths, leads = row + full.blocks.rows, end, [], []
                    continue
                lead = 0 if done else self.lead
                taken = min(length - done, max(room, self.block) - lead)
                lengths.append(taken)
                leads.append(lead)
                done, end = done + taken, end + taken
        yield piece()

    def _block_grid(self, lengths: Sequence[int], leads: Sequence[int]) -> Grid:
        """Blocks of documents, or of parts of some, of these lengths, after so many empty places."""
        widths = [-(-(lead + length) // self.block) * self.block for length, lead in zip(lengths, leads, strict=True)]
        return Grid(lengths, widths, self.block, self.device, leads)

    def positions(self) -> Tensor:
        """int64 (P,): the position of each packed token in its document."""
        positions_N = torch.arange(self.longest, device=self.document_mask.device)
        return self.documents.to_tokens(positions_N.repeat(len(self.lengths), 1))

    def to_memory(self, x_PD: Tensor) -> Tensor:
        """(P, D) -> (B, S, D), zero in empty slots."""
        memory = self.documents.to_rows(x_PD)
        return memory if self.all_real else memory.masked_fill(~self.document_mask[..., None], 0)

    @classmethod
    def from_mask(cls, mask_BN: Tensor, block: int | None) -> "tuple[Layout, Tensor]":
        """Return the layout of the True tokens and their indices (P,) in the flattened mask; an empty row keeps one."""
        batch, num_tokens = mask_BN.shape
        if torch.compiler.is_compiling() or mask_BN.is_meta:
            order_BN = front_order(mask_BN)
            at_P = (order_BN + torch.arange(batch, device=mask_BN.device)[:, None] * num_tokens).flatten()
            return cls([num_tokens] * batch, block, mask_BN.device, mask_BN.gather(1, order_BN)), at_P
        lengths_B = mask_BN.sum(1)
        lengths = lengths_B.tolist()
        if min(lengths) > 0:
            return cls(lengths, block, mask_BN.device), mask_BN.flatten().nonzero().squeeze(1)
        packed_BN = mask_BN.clone()
        packed_BN[:, 0] |= lengths_B == 0
        front_BN = torch.arange(max(1, *lengths), device=mask_BN.device) < lengths_B[:, None]
        lengths = [max(length, 1) for length in lengths]
        return cls(lengths, block, mask_BN.device, front_BN), packed_BN.flatten().nonzero().squeeze(1)


def open_empty_rows(mask: Tensor) -> Tensor:
    """Unmask rows that are fully masked: softmax over an empty row is NaN. Their output is never read."""
    return mask | ~mask.any(dim=-1, keepdim=True)
