"""Settings of preparation and loading. Values only: nothing here opens a file."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from transpooler.data_pipeline.objectives import OBJECTIVES

SPLITS = ("train", "validation", "test", "pretrain")
ALGORITHMS = ("bpe", "unigram")
UNICODE_FORMS = ("NFC", "NFKC", "NFD", "NFKD")
EXECUTORS = ("processes", "ray")
GAP_SELECTIONS = ("ind_orig", "ind_uniq", "seq_orig", "seq_uniq", "lead", "random")
MAX_CORPORA = 256
_NOT_NEGATIVE = (
    *("short_first_epochs", "gap_noise", "workers"),
    *("fetch_ahead_steps", "fetch_retries", "max_damaged_documents"),
)


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
class CorpusConfig:
    """One corpus of a mixture."""

    name: str
    """Stands before the document keys, as name/key."""
    shards: str
    """Folder or URL written by `transpooler prepare`, with the tokenizer of data.shards."""
    split: str | None = None
    """null takes data.train_split."""
    weight: float = 1.0
    """Share of the micro batches (with batch_tokens) or documents, relative to the other weights."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Shards to batches."""

    shards: str = "shards"
    """Folder or URL (s3://, gs://, ...) written by `transpooler prepare`."""
    mixture: tuple[CorpusConfig, ...] = ()
    """Corpora to train on together, each in epochs of its own; `shards` then serves tokenizer and validation alone."""
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
    """Documents per optimizer step over all ranks (the global batch); evaluation's too. Not used with batch_tokens."""
    batch_tokens: int | None = None
    """Source tokens per optimizer step over all ranks, padding included: as many documents as fit. null: batch_size."""
    micro_batch_tokens: int | None = None
    """Source tokens of one forward pass on one rank, padding included, with batch_tokens; null = max_source_tokens."""
    length_bucket_width: float | None = 0.05
    """Documents that share a (micro) batch differ in length by at most this share; null turns buckets off."""
    shuffle_shards: int | None = None
    """Shards whose documents are mixed with each other; null = all. Few keep remote reading local, many mix better."""
    short_first_epochs: int = 0
    """Curriculum: in the first so many epochs batches come in order of length, shortest first."""
    mask_fraction: float = 0.3
    """denoise: share of tokens inside masked spans."""
    mean_span_tokens: float = 3.0
    """denoise: mean length of a masked span (Poisson)."""
    permute_sentences: bool = False
    """denoise: shuffle the sentences of the source, as BART's large models did."""
    gap_fraction: float = 0.2
    """gap_sentences: share of sentences taken out and generated."""
    gap_selection: str = "ind_orig"
    """gap_sentences: ind_orig, ind_uniq, seq_orig, seq_uniq (principal by ROUGE-1), lead or random."""
    gap_noise: float = 0.2
    """gap_sentences: scores are multiplied by 1 to 1 + this at random, so that epochs differ."""
    gap_kept_fraction: float = 0.0
    """gap_sentences: share of the selected sentences that stay in the source, too (PEGASUS-large: 0.2)."""
    prefetch_steps: int = 2
    """Global batches read ahead; per worker process, if there are any."""
    workers: int = 0
    """Processes per rank that make batches; 0 = a thread. Batches do not depend on it."""
    cache: str = "~/.cache/transpooler"
    """Folder for shards fetched from a URL; processes of one machine share it."""
    cache_gib: float = 64.0
    """The cache is kept below this size; the shards used least recently go first."""
    fetch_ahead_steps: int = 16
    """Shards of the next so many steps are fetched in the background."""
    fetch_retries: int = 5
    """Further attempts after a failed or damaged transfer, with growing pauses."""
    max_damaged_documents: int = 0
    """Documents that cannot be read are left out and counted, up to so many in a run over all ranks; more end it."""

    @property
    def needs_summaries(self) -> bool:
        """Whether the objective learns to generate the documents' summaries."""
        return self.objective in OBJECTIVES and OBJECTIVES[self.objective].needs_summaries

    @property
    def chunks_per_step(self) -> int:
        """Chunks (see data_pipeline.order) of one global batch."""
        if self.batch_tokens is not None:
            return self.batch_tokens // (self.micro_batch_tokens or self.max_source_tokens)
        return self.batch_size if self.mixture else 1

    def num_micro_batches(self, world_size: int, micro_batch_size: int) -> int:
        """Micro batches of every training step, on every rank."""
        total = self.chunks_per_step if self.batch_tokens is not None else -(-self.batch_size // micro_batch_size)
        return -(-total // world_size)

    def problems(self) -> Iterator[tuple[str, str]]:
        for name, choices in (("objective", OBJECTIVES), ("gap_selection", GAP_SELECTIONS)):
            if getattr(self, name) not in choices:
                yield name, f"is {getattr(self, name)!r}; choose one of {', '.join(choices)}"
        for name in ("max_source_tokens", "max_target_tokens"):
            if getattr(self, name) < 2:
                yield name, f"is {getattr(self, name)}; must be at least 2 (one token and </s>)"
        for name in ("batch_size", "prefetch_steps", "shuffle_shards"):
            if (value := getattr(self, name)) is not None and value < 1:
                yield name, f"is {value}; must be at least 1"
        for name in (*_NOT_NEGATIVE, "length_bucket_width"):
            if (value := getattr(self, name)) is not None and value < 0:
                yield name, f"is {value}; must not be negative"
        for name in ("mask_fraction", "gap_fraction"):
            if not 0 < getattr(self, name) < 1:
                yield name, f"is {getattr(self, name)}; must lie between 0 and 1"
        if not 0 <= self.gap_kept_fraction <= 1:
            yield "gap_kept_fraction", f"is {self.gap_kept_fraction}; must lie in [0, 1]"
        if self.mean_span_tokens < 1:
            yield "mean_span_tokens", f"is {self.mean_span_tokens}; must be at least 1"
        if self.cache_gib <= 0:
            yield "cache_gib", f"is {self.cache_gib}; must be positive"
        yield from self._batch_problems()
        yield from self._mixture_problems()

    def _batch_problems(self) -> Iterator[tuple[str, str]]:
        micro = self.micro_batch_tokens
        if micro is not None and self.batch_tokens is None:
            yield "micro_batch_tokens", f"is {micro}, which needs data.batch_tokens"
        if micro is not None and micro < self.max_source_tokens:
            yield (
                "micro_batch_tokens",
                f"is {micro}; one document may have max_source_tokens = {self.max_source_tokens}",
            )
        elif self.batch_tokens is not None and self.batch_tokens < (micro or self.max_source_tokens):
            yield (
                "batch_tokens",
                f"is {self.batch_tokens}, less than one micro batch of {micro or self.max_source_tokens}",
            )
        if self.short_first_epochs and self.shuffle_shards is not None:
            yield (
                "short_first_epochs",
                f"is {self.short_first_epochs}, which needs all shards at once: shuffle_shards=null",
            )

    def _mixture_problems(self) -> Iterator[tuple[str, str]]:
        names = [corpus.name for corpus in self.mixture]
        if len(set(names)) < len(names):
            yield "mixture", f"has corpora of the same name ({', '.join(names)}); names must differ"
        if len(names) > MAX_CORPORA:
            yield "mixture", f"has {len(names)} corpora; at most {MAX_CORPORA}"
        for corpus in self.mixture:
            if not corpus.weight > 0:
                yield "mixture", f"gives {corpus.name} the weight {corpus.weight}; must be positive"
