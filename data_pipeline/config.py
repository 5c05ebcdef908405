"""Settings of preparation and loading. Values only: nothing here opens a file."""

from collections.abc import Iterator
from dataclasses import dataclass, field

SPLITS = ("train", "validation", "test", "pretrain")
ALGORITHMS = ("bpe", "unigram")
UNICODE_FORMS = ("NFC", "NFKC", "NFD", "NFKD")
EXECUTORS = ("processes", "ray")
OBJECTIVES = ("summarize", "denoise", "gap_sentences")


@dataclass(frozen=True, kw_only=True)
class SourcesConfig:
    """Inputs of each split: paths, globs or URLs (s3://, gs://, hf://) of .jsonl(.gz, .zst), .parquet, .tar and .txt
    files, or datasets://NAME?split=S; an empty list leaves the split out."""

    train: tuple[str, ...] = ()
    validation: tuple[str, ...] = ()
    test: tuple[str, ...] = ()
    pretrain: tuple[str, ...] = ()
    """Documents without summaries, for the denoise and gap_sentences objectives."""


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """Which tokenizer turns text into ids."""

    path: str | None = None
    """Folder of a saved fast tokenizer, a tokenizer.json, or a hub id; null trains one on the sources."""
    algorithm: str = "bpe"
    """What is trained: bpe (byte-level, lossless) or unigram (SentencePiece-like, after NFKC; the paper's)."""
    vocab_size: int = 32_000
    """Entries of a trained tokenizer, special tokens included."""
    max_training_documents: int = 10_000
    """Train the tokenizer on the first so many documents."""

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.algorithm not in ALGORITHMS:
            yield "algorithm", f"is {self.algorithm!r}; choose one of {', '.join(ALGORITHMS)}"
        if self.algorithm == "bpe" and self.vocab_size < 262:
            yield "vocab_size", f"is {self.vocab_size}; a byte-level BPE needs at least 262 (256 bytes + 6 special)"


@dataclass(frozen=True, kw_only=True)
class CleanConfig:
    """Cleaning and filtering, in this order. Every document that goes is counted under the step's name."""

    unicode_form: str | None = "NFC"
    """Normal form of all text: NFC, NFKC, NFD, NFKD, or null."""
    control_characters: bool = True
    """Take out control characters (tabs and line feeds stay; CR LF becomes LF)."""
    min_source_characters: int = 1
    max_source_characters: int | None = None
    min_target_characters: int = 1
    max_target_characters: int | None = None
    max_target_source_ratio: float | None = None
    """Longest summary as a share of its document, in characters; null sets no limit."""
    quality: bool = False
    """Drop what is no prose, by the four settings below; knows no language."""
    min_letter_share: float = 0.5
    """quality: letters among the characters that are no spaces."""
    max_mean_word_characters: float = 15.0
    """quality: mean length of words (of texts in ASCII)."""
    max_repeated_line_share: float = 0.3
    """quality: characters in lines that stood before."""
    max_repeated_words_share: float = 0.2
    """quality: characters in sequences of five words that stood before."""
    held_out_overlap: float | None = 0.5
    """Drop train and pretrain documents that hold this share of a validation or test document; null keeps them."""
    exact_duplicates: bool = True
    """Drop documents of a split that stood before (case and spacing do not count)."""
    near_duplicates: bool = False
    """Drop documents of a split that are like one before (MinHash of 5-word shingles, similarity about 0.7)."""

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.unicode_form is not None and self.unicode_form not in UNICODE_FORMS:
            yield "unicode_form", f"is {self.unicode_form!r}; choose one of {', '.join(UNICODE_FORMS)} or null"
        for name in ("held_out_overlap", "max_target_source_ratio"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                yield name, f"is {value}; must be positive, or null"
        for name in ("source", "target"):
            low, high = getattr(self, f"min_{name}_characters"), getattr(self, f"max_{name}_characters")
            if high is not None and high < low:
                yield f"max_{name}_characters", f"is {high}, below min_{name}_characters = {low}"
        for name in ("min_letter_share", "max_repeated_line_share", "max_repeated_words_share"):
            if not 0 <= getattr(self, name) <= 1:
                yield name, f"is {getattr(self, name)}; must lie in [0, 1]"


@dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    """`transpooler prepare`: documents to tokenized WebDataset shards."""

    output: str = "shards"
    """Folder or URL that receives tokenizer/, one folder of shards per split, README.md and report.json."""
    scratch: str | None = None
    """Folder for unfinished work; null: OUTPUT.incomplete (of a URL: its last part, in the working folder)."""
    sources: SourcesConfig = field(default_factory=SourcesConfig)
    source_column: str | None = None
    """Key of the document; null recognises article, document, text (first present wins)."""
    target_column: str | None = None
    """Key of the summary; null recognises abstract, summary, highlights."""
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    clean: CleanConfig = field(default_factory=CleanConfig)
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
    keep_source_text: bool = False
    """Store the document's text, too (as source_text in the .json member); summaries are always stored."""
    license: str | None = None
    """Licence of the documents, for the dataset card: an identifier of the Hugging Face hub, such as cc-by-4.0."""
    task_mib: float = 8.0
    """Input of one task, the unit that is done again after a kill."""
    workers: int = 0
    """Tokenizing processes; 0 uses all cores. Output bytes do not depend on it."""
    executor: str = "processes"
    """processes (of this machine) or ray (a Ray cluster; all its machines see the inputs and the scratch folder)."""

    def problems(self) -> Iterator[tuple[str, str]]:
        for name in ("shard_size_mib", "task_mib"):
            if getattr(self, name) <= 0:
                yield name, f"is {getattr(self, name)}; must be positive"
        if self.executor not in EXECUTORS:
            yield "executor", f"is {self.executor!r}; choose one of {', '.join(EXECUTORS)}"
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
