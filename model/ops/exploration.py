"""Noise for the poolers' scores: tokens that would be dropped are tried now and then.

Gumbel noise on what a scorer gives (its logits): at scale 1 the k best are k draws without replacement from the softmax
of the scorer (Kool et al. 2019, arXiv 1903.06059). The noise of a place is a function of a number (of each step, drawn
from the run's seed), of the document's own tokens, of the stage and of the place: a counter goes through the finaliser
of SplitMix64 (Steele et al. 2014). No generator has a state, so that neither the rank, nor the batch and its padding,
nor what is computed again for checkpointing, nor a kill changes a bit. Cost: some thirty operations on (B, N) integers
a stage. Given up: equal documents in one step get equal noise.
"""

import torch
from torch import Tensor

_GOLDEN = -0x61C8864680B583EB
"""0x9E3779B97F4A7C15, as all constants modulo 2^64, which is how int64 counts."""
_MULTIPLIERS = (-0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15)
_BITS = 52
_EULER_GAMMA = 0.5772156649015329
"""The mean of Gumbel noise."""


# Operators, which compilers call as they are: what torch 2.13's inductor made of document_keys corrupted the heap on a
# CPU, and a compiled run should draw what an eager one draws, to the bit.
@torch.library.custom_op("transpooler::document_keys", mutates_args=())
def document_keys(ids_BN: Tensor, positions_BN: Tensor, mask_BN: Tensor) -> Tensor:
    """int64 (B,): a hash of each document's real tokens and their positions; ids and positions int64, mask bool.

    A sum over its tokens: ranks that have a part each add up what they find.
    """
    mixed_BN = _mix(ids_BN + _GOLDEN * (1 + positions_BN))
    return torch.where(mask_BN, mixed_BN, 0).sum(1)


@document_keys.register_fake
def _(ids_BN, positions_BN, mask_BN):
    return ids_BN.new_empty(ids_BN.shape[:1])


@torch.library.custom_op("transpooler::gumbel_noise", mutates_args=())
def gumbel_noise(keys_B: Tensor, num_places: int, stage: int, draw: Tensor) -> Tensor:
    """float64 (B, num_places) of mean 0 and standard deviation 1.28, for each document of keys int64 (B,).

    draw: int64 (); whatever has the same draw, key and stage (the number of a layer) has the same noise.
    """
    start_B = _mix(_mix(keys_B ^ draw) ^ stage)
    counter_BN = _mix(start_B[:, None] + _GOLDEN * (1 + torch.arange(num_places, device=keys_B.device)))
    uniform_BN = (_shift_right(counter_BN, 64 - _BITS).double() + 0.5) * 2.0**-_BITS
    return -(-uniform_BN.log()).log() - _EULER_GAMMA


@gumbel_noise.register_fake
def _(keys_B, num_places, stage, draw):
    return keys_B.new_empty((keys_B.shape[0], num_places), dtype=torch.float64)


def _mix(x: Tensor) -> Tensor:
    """SplitMix64's finaliser: every bit of int64 `x` changes about half of the result's."""
    for shift, multiplier in zip((30, 27), _MULTIPLIERS, strict=True):
        x = (x ^ _shift_right(x, shift)) * multiplier
    return x ^ _shift_right(x, 31)


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Of the 64 bits as they are, without a sign."""
    return (x >> bits) & (2 ** (64 - bits) - 1)
