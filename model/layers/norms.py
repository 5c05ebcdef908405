"""The norms between and after layers."""

from torch import Tensor, nn

from transpooler.model.config import TranspoolerConfig


def make_norm(config: TranspoolerConfig) -> nn.Module:
    """LayerNorm (Ba et al. 2016) or RMSNorm (Zhang and Sennrich 2019) over d_model."""
    kind = {"layer": nn.LayerNorm, "rms": nn.RMSNorm}[config.norm_kind]
    return kind(config.d_model, eps=config.norm_eps)


class FinalNorm(nn.Module):
    """The norm that closes a stack of pre-norm layers; the identity for post-norm layers."""

    def __init__(self, config: TranspoolerConfig) -> None:
        super().__init__()
        self.norm = make_norm(config) if config.norm == "pre" else None

    def forward(self, x: Tensor) -> Tensor:
        return x if self.norm is None else self.norm(x)
