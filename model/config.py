"""`TranspoolerConfig`: the architecture as `transformers` wants it. Defaults and rules are those of `Architecture`."""

from dataclasses import asdict

import transformers
from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from transpooler.model.architecture import SHAPE_FIELDS, Architecture
from transpooler.model.ops.schedule import pooling_stage

VERSIONS = ((5, 17), (5, 24))
"""The oldest and the newest minor version of transformers on which this code was tested."""


def check_transformers(version: str) -> None:
    """ImportError on a version of transformers where this code could compute something else without a word."""
    oldest, newest = (".".join(map(str, pair)) for pair in VERSIONS)
    if not VERSIONS[0] <= tuple(int(part) for part in version.split(".")[:2]) <= VERSIONS[1]:
        raise ImportError(
            f"this code was tested with transformers {oldest} to {newest}, and {version} may change its results "
            f"silently; pip install 'transformers>={oldest},<={newest}.99', or export again with a newer transpooler"
        )


check_transformers(transformers.__version__)  # here, in the first file that an export loads


@strict
class TranspoolerConfig(PreTrainedConfig):
    """Dimensions, block size and pooling schedule of a pooling encoder-decoder; see `Architecture` for each field.

    `pooling` is a list of dicts with the fields of `PoolingStage`. Vanilla, Blockwise, Transpooler, Pyramidion and
    DeepPyramidion are values of this one class (configs/). Raises ValueError naming every bad field.
    """

    model_type = "transpooler"
    keys_to_ignore_at_inference = ["past_key_values"]  # noqa: RUF012 (a list, to which Trainer adds)
    attribute_map = {  # noqa: RUF012 (transformers' own convention)
        "hidden_size": "d_model",
        "num_attention_heads": "num_heads",
        "num_hidden_layers": "encoder_layers",
        "initializer_range": "init_std",
    }

    vocab_size: int = 32_000
    d_model: int = Architecture.d_model
    encoder_layers: int = Architecture.encoder_layers
    decoder_layers: int = Architecture.decoder_layers
    num_heads: int = Architecture.num_heads
    head_dim: int | None = Architecture.head_dim
    kv_heads: int | None = Architecture.kv_heads
    attention_scale: float | int | None = Architecture.attention_scale
    attention_bias: bool = Architecture.attention_bias
    ffn_dim: int = Architecture.ffn_dim
    ffn_bias: bool = Architecture.ffn_bias
    activation: str = Architecture.activation
    norm: str = Architecture.norm
    norm_kind: str = Architecture.norm_kind
    norm_eps: float = Architecture.norm_eps
    positions: str = Architecture.positions
    max_positions: int = Architecture.max_positions
    sinusoid_steps: str = Architecture.sinusoid_steps
    position_offset: int = Architecture.position_offset
    relative_buckets: int = Architecture.relative_buckets
    relative_max_distance: int = Architecture.relative_max_distance
    relative_per_layer: bool = Architecture.relative_per_layer
    block_positions: str = Architecture.block_positions
    embedding_scale: float | int | None = Architecture.embedding_scale
    embedding_norm: bool = Architecture.embedding_norm
    decoder_norm_first: bool = Architecture.decoder_norm_first
    tied_head: bool = Architecture.tied_head
    logits_scale: float | int = Architecture.logits_scale
    logits_bias: bool = Architecture.logits_bias
    block_size: int | None = Architecture.block_size
    stagger_blocks: bool = Architecture.stagger_blocks
    pooling: list | tuple = ()
    pooling_base: float = Architecture.pooling_base
    pooling_norm: str = Architecture.pooling_norm
    scorer_init_std: float | None = Architecture.scorer_init_std
    exploration_noise: float | int = Architecture.exploration_noise
    dropout: float | int = Architecture.dropout
    init_std: float = Architecture.init_std
    use_cache: bool = True
    is_encoder_decoder: bool = True
    tie_word_embeddings: bool = True
    bos_token_id: int | None = 0
    pad_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2
    decoder_start_token_id: int | None = 0

    def __post_init__(self, **kwargs):
        stages = [pooling_stage(stage) for stage in self.pooling]
        self.pooling = [asdict(stage) for stage in stages]
        if problems := [f"{key} {message}" for key, message in self.architecture.problems()]:
            raise ValueError("; ".join(problems))
        super().__post_init__(**kwargs)

    @property
    def architecture(self) -> Architecture:
        """The fields that `Architecture` has."""
        values = {name: getattr(self, name) for name in SHAPE_FIELDS}
        return Architecture(**values | {"pooling": tuple(pooling_stage(stage) for stage in self.pooling)})

    @classmethod
    def from_architecture(
        cls, architecture: Architecture, *, vocab_size: int, pad_token_id: int, bos_token_id: int, eos_token_id: int
    ) -> "TranspoolerConfig":
        """The configuration of `architecture` over a vocabulary; decoding starts with bos, if with no other."""
        start = architecture.decoder_start_token_id
        return cls(
            **{name: value for name, value in asdict(architecture).items() if name in SHAPE_FIELDS},
            vocab_size=vocab_size,
            pad_token_id=pad_token_id,
            bos_token_id=bos_token_id,
            eos_token_id=eos_token_id,
            decoder_start_token_id=bos_token_id if start is None else start,
        )
