"""The configuration of a compressor as `transformers` stores it: two stock configurations and what lies between."""

from dataclasses import asdict
from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from transpooler.model.ops.schedule import PoolingStage, pooler_problems, pooling_stage, schedule_problems


class CompressorConfig(PreTrainedConfig):
    """`encoder` and `reader` are stock configurations of causal language models (Llama, Qwen, Gemma 3 text, ...).

    `pooling` is a list of dicts with the fields of `PoolingStage`; after_layer 0 pools the embeddings.
    Raises ValueError naming every bad field.
    """

    model_type = "transpooler_compressor"
    # transformers 5.17 builds no parts of a type that is read from them, so __post_init__ does.
    sub_configs = {"encoder": AutoConfig, "reader": AutoConfig}  # noqa: RUF012 (transformers' own convention)

    encoder: Any = None
    reader: Any = None
    block_size: int | None = 512
    causal: bool = True
    """Whether tokens of a block see only those before them, as in the weights' own training."""
    pooling: list | tuple = ()
    pooling_base: float = 20.0
    scorer_init_std: float | None = None
    exploration_noise: float = 0.0
    carry_embeddings: bool = True
    """Add the pooled input embeddings to what the adapter gives: an untrained model then reads the kept tokens."""
    prefix_ids: list | tuple = ()
    """Tokens that the reader reads before the slots."""
    prompt_ids: list | tuple = ()
    """Tokens that the reader reads between the slots and what it writes."""
    pad_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    is_encoder_decoder: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        for name in self.sub_configs:
            if not isinstance(part := getattr(self, name), PreTrainedConfig):
                setattr(self, name, AutoConfig.for_model(**{"model_type": "llama"} | (part or {})))
        super().__post_init__(**kwargs)
        stages = [pooling_stage(stage) for stage in self.pooling]
        self.pooling = [asdict(stage) for stage in stages]
        self.prefix_ids, self.prompt_ids = list(self.prefix_ids), list(self.prompt_ids)
        problems = [
            *pooler_problems(self.pooling_base, self.scorer_init_std, self.exploration_noise),
            *schedule_problems(stages, first=0, last=self.encoder.num_hidden_layers),
        ]
        if self.carry_embeddings and (self.encoder.hidden_size, self.encoder.vocab_size) != (
            self.reader.hidden_size,
            self.reader.vocab_size,
        ):
            problems.append(("carry_embeddings", "needs encoder and reader of equal width and vocabulary"))
        if problems:
            raise ValueError("; ".join(f"{key} {message}" for key, message in problems))

    @property
    def vocab_size(self) -> int:
        """Tokens that the reader can write."""
        return int(self.reader.vocab_size)

    @property
    def stages(self) -> tuple[PoolingStage, ...]:
        """The pooling schedule."""
        return tuple(pooling_stage(stage) for stage in self.pooling)
