"""The `model:` section of a compressor as plain values (no torch here, so that it loads at once)."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from transpooler.model.ops.schedule import PoolingStage, pooler_problems, schedule_problems

DOCUMENT = "{document}"


@dataclass(frozen=True, kw_only=True)
class CompressorArchitecture:
    """A stock causal language model that reads the slots of a hosted encoder."""

    kind: str = "compressor"
    encoder: dict[str, Any] = field(default_factory=dict)
    """config.json of the encoder's stock model; filled in from train.init_encoder_from, else from the reader's."""
    reader: dict[str, Any] = field(default_factory=dict)
    """config.json of the reader, a causal language model of `transformers`; filled in from train.init_from."""
    encoder_layers: int | None = None
    """Take the first of the encoder's layers alone; null = all. 0 pools embeddings, without an encoder."""
    block_size: int | None = 512
    """Tokens per encoder attention block, in each of which positions start at 0; null = the whole document."""
    causal: bool = True
    """Whether tokens of a block see only those before them, as in the weights' own training."""
    pooling: tuple[PoolingStage, ...] = field(default_factory=tuple)
    """The pooling schedule, in order of layers; after_layer 0 pools the embeddings."""
    pooling_base: float = 20.0
    """Base b of the pair softmax, softmax(b^s) (Successive Halving paper)."""
    scorer_init_std: float | None = None
    """Standard deviation of the scorers' initial weights; null = 2 / sqrt(width): most pairs are then decided from the
    start, and slots are tokens that the reader knows, not averages that it would first have to learn to read."""
    exploration_noise: float = 0.0
    """Gumbel noise on the logits of the scorers in training, in multiples of its standard form, so that tokens which
    would be dropped are tried, too. A function of seed, step and document. 0 = none; at evaluation there is none."""
    carry_embeddings: bool = True
    """Add the pooled input embeddings to what the adapter gives: an untrained model then reads the kept tokens."""
    prompt: str = DOCUMENT
    """What the reader reads before it writes; {document} is where the slots stand."""
    chat: bool = False
    """Wrap the prompt into the tokenizer's chat template, as what the user says."""

    @property
    def num_layers(self) -> int:
        """The encoder's layers."""
        whole = int(self.encoder.get("num_hidden_layers", 0))
        return whole if self.encoder_layers is None else min(self.encoder_layers, whole)

    def problems(self) -> Iterator[tuple[str, str]]:
        """Rules about this section."""
        if self.kind != "compressor":
            yield "kind", f"is {self.kind!r}; choose one of seq2seq, compressor"
        for name in ("encoder", "reader"):
            if "hidden_size" not in getattr(self, name):
                yield name, "is not known; give train.init_from the folder of a causal language model"
                return
        whole = int(self.encoder["num_hidden_layers"])
        if self.encoder_layers is not None and not 0 <= self.encoder_layers <= whole:
            yield "encoder_layers", f"is {self.encoder_layers}; the encoder has {whole}"
        if self.block_size is not None and self.block_size < 1:
            yield "block_size", f"is {self.block_size}; must be at least 1, or null for the whole document"
        yield from pooler_problems(self.pooling_base, self.scorer_init_std, self.exploration_noise)
        if self.prompt.count(DOCUMENT) != 1:
            yield "prompt", f"is {self.prompt!r}; must hold {DOCUMENT} once"
        same = all(self.encoder[name] == self.reader[name] for name in ("hidden_size", "vocab_size"))
        if self.carry_embeddings and not same:
            widths = f"widths {self.encoder['hidden_size']} and {self.reader['hidden_size']}"
            yield "carry_embeddings", f"is true, but encoder and reader differ ({widths}, or vocabularies); use false"
        yield from schedule_problems(self.pooling, first=0, last=self.num_layers)
