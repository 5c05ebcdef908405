"""Context parallelism: ranks that share documents, each with whole blocks of every document (docs/long-documents.md).

Layers never look beyond a block, so they need nothing of other ranks. A pooling stage needs two sums over the ranks: of
the scores, each rank's at its own places and zero elsewhere, so that every rank plays the same tournament over the
whole document; and of what each rank's tokens give to the slots. After the last stage each rank goes on with
documents of its own, one in P, so that nothing is computed twice. All gradients are partial sums over the ranks.

B documents, N tokens of the longest, n of them on this rank, S slots, D width, P ranks.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, distributed

from transpooler.model.layout import Layout
from transpooler.model.ops.soft_topk import SoftTopK
from transpooler.model.ops.soft_topk.plain import group_sum


class Part(NamedTuple):
    """Which part of a micro batch a rank has: the one owner of this rule, for tokens and for slots."""

    rank: int
    size: int
    block: int
    """Tokens of a block."""

    def tokens(self, num_tokens: int, document: int) -> slice:
        """Its tokens of the document with this number in the batch: whole blocks, as many as others have, or one less.

        The number decides who has one more, so that short documents do not all fall to one rank.
        """
        blocks = -(-num_tokens // self.block)
        ends = ((blocks * rank + document % self.size) // self.size for rank in (self.rank, self.rank + 1))
        return slice(*(min(end * self.block, num_tokens) for end in ends))

    def documents(self, num_documents: int) -> range:
        """The documents that it decodes; there may be none."""
        return range(self.rank, num_documents, self.size)


class ContextGroup:
    """The ranks that share documents, as seen from one of them."""

    def __init__(self, rank: int, size: int, group: Any) -> None:
        """`group` is of torch.distributed, with `size` ranks of which this process is number `rank`."""
        self.rank, self.size, self.group = rank, size, group
        self.bytes_sent = 0.0
        """By this rank so far: a ring sends 2 (P - 1) / P of what it sums."""

    def add_up(self, x: Tensor) -> Tensor:
        """The sum of the ranks' x, on each of them; no gradient."""
        total = x.clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(total, group=self.group)
        self.bytes_sent += 2 * (self.size - 1) / self.size * total.numel() * total.element_size()
        return total

    def part(self, block: int) -> Part:
        """This rank's part of every micro batch, in blocks of so many tokens."""
        return Part(self.rank, self.size, block)

    def agree(self, value: int, device: torch.device) -> bool:
        """Whether all ranks have the same value."""
        bounds = torch.tensor([value, -value], device=device)
        distributed.all_reduce(bounds, op=distributed.ReduceOp.MAX, group=self.group)
        most, least = bounds.tolist()
        return most == -least

    def share(self, layout: Layout) -> "Share":
        """What this rank has of a batch whose own tokens lie as in `layout`."""
        lengths_PB = torch.zeros(self.size, len(layout.lengths), dtype=torch.int64, device=layout.device)
        lengths_PB[self.rank] = layout.document_mask.sum(1)
        lengths_PB = self.add_up(lengths_PB)
        starts_B, lengths_B = lengths_PB[: self.rank].sum(0), lengths_PB.sum(0)
        positions_N = torch.arange(max(1, int(lengths_B.max())), device=layout.device)
        return Share(self, lengths_B, starts_B, lengths_PB[self.rank], positions_N.expand(len(lengths_B), -1))

    @contextmanager
    def same_draws(self, device: torch.device) -> Iterator[None]:
        """Inside, random numbers are the same on all ranks; afterwards each goes on with its own."""
        seed = torch.randint(2**62, (1,)) * (self.rank == 0)
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(int(self.add_up(seed.to(device))))
            yield


_groups: list[ContextGroup] = []


@contextmanager
def sharing(group: ContextGroup | None) -> Iterator[None]:
    """Inside, batches hold this rank's parts of documents that it shares with the `group`; None changes nothing."""
    if group is None:
        yield
        return
    _groups.append(group)
    try:
        yield
    finally:
        _groups.remove(group)


def share_of(layout: Layout) -> "Share | None":
    """`ContextGroup.share` inside `sharing`, else None."""
    return _groups[-1].share(layout) if _groups else None


class Share:
    """A rank's tokens of each document of a batch, before a pooling stage."""

    def __init__(
        self, group: ContextGroup, lengths_B: Tensor, starts_B: Tensor, own_B: Tensor, positions_BN: Tensor
    ) -> None:
        """Document i has lengths_B[i] tokens, of which own_B[i] from starts_B[i] on are here; all int64.

        positions_BN: where all tokens stood in the document as it was read.
        """
        self.group, self.positions_BN = group, positions_BN
        num_tokens = positions_BN.shape[1]
        self.mask_BN = torch.arange(num_tokens, device=lengths_B.device) < lengths_B[:, None]
        """bool: real tokens, of all ranks."""
        column_n = torch.arange(max(1, int(own_B.max())), device=lengths_B.device)
        self._is_own_Bn = column_n < own_B[:, None]
        # Whatever is not there would lie behind the last token.
        self._at_Bn = torch.where(self._is_own_Bn, starts_B[:, None] + column_n, num_tokens)

    def own_positions(self) -> Tensor:
        """int64 (B, n): where this rank's tokens stood in the document."""
        return self.own(self.positions_BN)

    def gather(self, x_Bn: Tensor) -> Tensor:
        """(B, n) -> (B, N): the values of all ranks' tokens, with gradient; 0 for padding."""
        zeros = x_Bn.new_zeros(len(x_Bn), self.mask_BN.shape[1] + 1)
        return _Sum.apply(zeros.scatter(1, self._at_Bn, x_Bn)[:, :-1], self.group)

    def sum_slots(self, embeddings_BnD: Tensor, plan: SoftTopK) -> Tensor:
        """(B, n, D) -> (B, S, D): what all ranks give to the slots of the `plan`, summed in float32 at least."""
        weights_Bn, groups_Bn = self.own(plan.weights), torch.where(self._is_own_Bn, self.own(plan.groups), -1)
        part = group_sum(embeddings_BnD, weights_Bn, groups_Bn, plan.mask.shape[1], "auto")
        wide = torch.promote_types(part.dtype, torch.float32)
        return _Sum.apply(part.to(wide), self.group).to(part.dtype)

    def deal(self, pooled: SoftTopK, block: int, is_last: bool) -> "tuple[Tensor, Layout, Tensor, Share | None]":
        """Of the slots that all ranks have this rank's: packed (P, D), their layout, positions (P,) and share.

        Blocks of every document, or, after the last stage, its documents, whole. A rank without any takes the first;
        its labels are all ignored.
        """
        group, positions_BS = self.group, self.positions_BN.gather(1, pooled.positions)
        part = group.part(block)
        if is_last:
            chosen = torch.tensor([*part.documents(len(positions_BS))] or [0]).to(positions_BS.device)
            layout, at_P = Layout.from_mask(pooled.mask.index_select(0, chosen), block)
            x_BSD, positions_BS = pooled.embeddings.index_select(0, chosen), positions_BS.index_select(0, chosen)
            return _pick(x_BSD, at_P), layout, _pick(positions_BS, at_P), None
        lengths = pooled.mask.sum(1).tolist()
        slices = [part.tokens(length, document) for document, length in enumerate(lengths)]
        bounds = [lengths, [each.start for each in slices], [each.stop - each.start for each in slices]]
        lengths_B, starts_B, own_B = torch.tensor(bounds).to(positions_BS.device)
        share = Share(group, lengths_B, starts_B, own_B, positions_BS)
        layout, at_P = Layout.from_mask(share._is_own_Bn, block)
        return _pick(share.own(pooled.embeddings), at_P), layout, _pick(share.own_positions(), at_P), share

    def own(self, x_BN: Tensor) -> Tensor:
        """(B, N, ...) -> (B, n, ...): of this rank's tokens; anything where there is none."""
        at_Bn = self._at_Bn.clamp(max=x_BN.shape[1] - 1)
        return x_BN.gather(1, at_Bn[(..., *[None] * (x_BN.dim() - 2))].expand(-1, -1, *x_BN.shape[2:]))


def _pick(rows: Tensor, at_P: Tensor) -> Tensor:
    return rows.flatten(0, 1).index_select(0, at_P)


class _Sum(torch.autograd.Function):
    """y = the sum of the ranks' x. The loss is the sum of the ranks' losses, so the gradient of x is that of y's."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: ContextGroup) -> Tensor:
        ctx.group = group
        return group.add_up(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.group.add_up(grad), None
