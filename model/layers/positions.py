"""Absolute, rotary and relative positions, from position numbers: pooled tokens keep those of their winners."""

import math

import torch
from torch import Tensor, nn

from transpooler.model.config import TranspoolerConfig

MAX_WAVELENGTH = 10_000.0


def sinusoidal(positions: Tensor, dim: int, dtype: torch.dtype, steps: str = "half") -> Tensor:
    """(..., dim) sines and cosines of int64 positions (...) (Vaswani et al. 2017, section 3.5), computed in float32.

    `steps` as `Architecture.sinusoid_steps`.
    """
    angles = _angles(positions, dim, last=dim if steps == "half" else max(dim - 2, 1))
    return torch.cat([angles.sin(), angles.cos()], dim=-1).to(dtype)


def rotary(positions: Tensor, head_dim: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosines and sines (B, 1, N, head_dim / 2) for `rotate` (Su et al. 2021), computed in float32.

    Of packed positions (P,): (P, 1, head_dim / 2), for heads of shape (P, H, K).
    """
    angles = _angles(positions, head_dim)[:, None]
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(x: Tensor, cos_sin: tuple[Tensor, Tensor]) -> Tensor:
    """Turn each pair (x_i, x_{i + K/2}) by its position's angle, so that dot products see relative positions."""
    cos, sin = (part.to(x.dtype) for part in cos_sin)
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


class RelativeBias(nn.Module):
    """Biases of attention scores by buckets of distances (Raffel et al. 2020, section 2.1), a table for each head.

    Half of a direction's buckets are single steps; the other half grow logarithmically up to relative_max_distance.
    """

    def __init__(self, config: TranspoolerConfig, num_layers: int, bidirectional: bool) -> None:
        super().__init__()
        self.config, self.bidirectional = config, bidirectional
        tables = num_layers if config.relative_per_layer else 1
        self.tables = nn.ModuleList(nn.Embedding(config.relative_buckets, config.num_heads) for _ in range(tables))

    def buckets(self, queries_BN: Tensor, keys_BM: Tensor) -> Tensor:
        """Positions int64 (B, N) and (B, M) -> int64 (B, N, M)."""
        distance = keys_BM[:, None] - queries_BN[:, :, None]
        count, offset = self.config.relative_buckets, torch.zeros_like(distance)
        if self.bidirectional:
            count //= 2
            offset = (distance > 0) * count
            distance = distance.abs()
        else:
            distance = -distance.clamp(max=0)
        exact, most = count // 2, self.config.relative_max_distance
        growth = torch.log(distance.float() / exact) / math.log(most / exact) * (count - exact)
        far = (exact + growth.clamp(0, count).long()).clamp(max=count - 1)  # the logarithm of 0 is not used below
        return offset + torch.where(distance < exact, distance, far)

    def forward(self, buckets_BNM: Tensor, layer: int) -> Tensor:
        """Buckets -> biases (B, H, N, M) of layer 0, 1, ..."""
        table = self.tables[layer if len(self.tables) > 1 else 0]
        return table(buckets_BNM).permute(0, 3, 1, 2)


def add_bias(bias_BHNM: Tensor, mask: Tensor | None) -> Tensor:
    """The bias where a mask lets attend: bool (True = attend) or floats to add, of a shape that broadcasts."""
    if mask is None:
        return bias_BHNM
    if mask.dtype == torch.bool:
        return bias_BHNM.masked_fill(~mask, torch.finfo(bias_BHNM.dtype).min)
    return bias_BHNM + mask


def _angles(positions: Tensor, dim: int, last: int | None = None) -> Tensor:
    """(..., dim / 2): the wavelength of coordinate `last` (None: dim) is the longest one."""
    steps = torch.arange(0, dim, 2, device=positions.device, dtype=torch.float32) / (last or dim)
    return positions[..., None].float() * MAX_WAVELENGTH**-steps
