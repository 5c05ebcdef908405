"""Absolute and rotary positions, both computed from position numbers: pooled tokens keep those of their winners."""

import torch
from torch import Tensor

MAX_WAVELENGTH = 10_000.0


def sinusoidal(positions: Tensor, dim: int, dtype: torch.dtype) -> Tensor:
    """(..., dim) sines and cosines of int64 positions (...) (Vaswani et al. 2017, section 3.5), computed in float32."""
    angles = _angles(positions, dim)
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


def _angles(positions: Tensor, dim: int) -> Tensor:
    steps = torch.arange(0, dim, 2, device=positions.device, dtype=torch.float32) / dim
    return positions[..., None].float() * MAX_WAVELENGTH**-steps
