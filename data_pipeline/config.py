"""Settings of preparation and loading. Values only: nothing here opens a file."""

from collections.abc import Iterator
from dataclasses import dataclass, field

SPLITS = ("train", "validation", "test", "pretrain")
OBJECTIVES = ("summarize", "denoise", "gap_sentences")


@dataclass(frozen=True, kw_only=True)
class SourcesConfig:
    """Input files of each split: paths or globs of .jsonl, .jsonl.gz and .txt files; an empty list leaves it out."""

    train: tuple[str, ...] = ()
    validation: tuple[str, ...] = ()
    test: tuple[str, ...] = ()
    pretrain: tuple[str, ...] = ()
    """Documents without summaries, for the denoise and gap_sentences objectives."""


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """Which tokenizer turns text into ids."""

    path: str | None = None
    """Folder of a saved fast tokenizer (or a tokenizer.json); null trains a byte-level BPE on the sources."""
    vocab_size: int = 32_000
    """Entries of a trained tokenizer, special tokens included."""
    max_training_documents: int = 10_000
    """Train the tokenizer on the first so many documents."""

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.vocab_size < 262:
            yield "vocab_size", f"is {self.vocab_size}; a byte-level BPE needs at least 262 (256 bytes + 6 special)"


@dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    """`transpooler prepare`: documents to tokenized WebDataset shards."""

    output: str = "shards"
    """Folder that receives tokenizer/, one folder of shards per split, and report.json."""
    sources: SourcesConfig = field(default_factory=SourcesConfig)
    source_column: str | None = None
    """Key of the document; null recognises article, document, text (first present wins)."""
    target_column: str | None = None
    """Key of the summary; null recognises abstract, summary, highlights."""
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    min_source_tokens: int = 16
    """Shorter documents are dropped (and counted as source_too_short)."""
    max_source_tokens: int | None = None
    """Longer documents are dropped (source_too_long); null keeps all: the loader truncates."""
    min_target_tokens: int = 2
    """Shorter summaries are dropped (target_too_short)."""
    max_target_tokens: int | None = 4096
    """Longer summaries are dropped (target_too_long)."""
    shard_size_mib: float = 64.0
    """A shard is closed when it holds this many MiB."""
    workers: int = 0
    """Tokenizing processes; 0 uses all cores. Output bytes do not depend on it."""

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.shard_size_mib <= 0:
            yield "shard_size_mib", f"is {self.shard_size_mib}; must be positive"
        for name in ("source", "target"):
            low, high = getattr(self, f"min_{name}_tokens"), getattr(self, f"max_{name}_tokens")
            if low < 1:
                yield f"min_{name}_tokens", f"is {low}; must be at least 1"
            if high is not None and high < low:
                yield f"max_{name}_tokens", f"is {high}, below min_{name}_tokens = {low}"
        if self.workers < 0:
            yield "workers", f"is {self.workers}; must be 0 (all cores) or more"


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Shards to batches."""

    shards: str = "shards"
    """Folder written by `transpooler prepare`."""
    train_split: str = "train"
    validation_split: str | None = "validation"
    """Split for evaluation in the loop; null turns it off."""
    objective: str = "summarize"
    """summarize (source -> target), denoise (BART text infilling) or gap_sentences (PEGASUS)."""
    max_source_tokens: int = 8192
    """Sources are cut to this many tokens, </s> included; denoise and gap_sentences read a random window of as many."""
    max_target_tokens: int = 1024
    """Targets are cut to this many tokens, </s> included."""
    batch_size: int = 32
    """Documents per optimizer step over all ranks (the global batch)."""
    bucket_batches: int = 32
    """Documents of like length share a batch: sorted by length within windows of this many batches; 1 = no buckets."""
    mask_fraction: float = 0.3
    """denoise: share of tokens inside masked spans."""
    mean_span_tokens: float = 3.0
    """denoise: mean length of a masked span (Poisson)."""
    gap_fraction: float = 0.2
    """gap_sentences: share of sentences taken out and generated."""
    prefetch_steps: int = 2
    """Global batches read ahead by a background thread."""

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.objective not in OBJECTIVES:
            yield "objective", f"is {self.objective!r}; choose one of {', '.join(OBJECTIVES)}"
        for name in ("max_source_tokens", "max_target_tokens"):
            if getattr(self, name) < 2:
                yield name, f"is {getattr(self, name)}; must be at least 2 (one token and </s>)"
        for name in ("batch_size", "bucket_batches", "prefetch_steps"):
            if getattr(self, name) < 1:
                yield name, f"is {getattr(self, name)}; must be at least 1"
        for name in ("mask_fraction", "gap_fraction"):
            if not 0 < getattr(self, name) < 1:
                yield name, f"is {getattr(self, name)}; must lie between 0 and 1"
        if self.mean_span_tokens < 1:
            yield "mean_span_tokens", f"is {self.mean_span_tokens}; must be at least 1"
