"""What the first layer reads: token embeddings, scaled, with positions, normalised."""

from torch import Tensor, nn
from torch.nn import functional as F

from transpooler.model.config import TranspoolerConfig
from transpooler.model.layers.norms import make_norm
from transpooler.model.layers.positions import sinusoidal


class Embedder(nn.Module):
    """Scales token embeddings, adds sinusoids or learned positions (rotary and relative ones act in the layers), then
    applies the norm, if there is one."""

    def __init__(self, config: TranspoolerConfig, norm_first: bool = False) -> None:
        """`norm_first`: the norm comes before positions are added."""
        super().__init__()
        self.sinusoids, self.dropout, self.norm_first = config.positions == "sinusoidal", config.dropout, norm_first
        self.steps, self.offset = config.sinusoid_steps, config.position_offset
        scale = config.d_model**0.5 if self.sinusoids else 1.0
        self.scale = scale if config.embedding_scale is None else config.embedding_scale
        learned = config.positions == "learned"
        self.positions = nn.Embedding(config.max_positions, config.d_model) if learned else None
        self.norm = make_norm(config) if config.embedding_norm else None

    def forward(self, embeddings: Tensor, positions: Tensor) -> Tensor:
        """embeddings (..., D), positions int64 (...)."""
        if self.scale != 1:
            embeddings = embeddings * self.scale
        if self.norm is not None and self.norm_first:
            embeddings = self.norm(embeddings)
        if self.sinusoids:
            counted = positions + self.offset
            embeddings = embeddings + sinusoidal(counted, embeddings.shape[-1], embeddings.dtype, self.steps)
        if self.positions is not None:
            embeddings = embeddings + self.positions(positions)
        if self.norm is not None and not self.norm_first:
            embeddings = self.norm(embeddings)
        return F.dropout(embeddings, self.dropout, self.training)
