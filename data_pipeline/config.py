"""Settings of preparation and loading. Values only: nothing here opens a file."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from transpooler.common import at_least, between, one_of, positive
from transpooler.data_pipeline.objectives import OBJECTIVES

SPLITS = ("train", "validation", "test", "pretrain")
ALGORITHMS = ("bpe", "unigram")
UNICODE_FORMS = ("NFC", "NFKC", "NFD", "NFKD")
EXECUTORS = ("processes", "ray")
BAD_FILE_CHOICES = ("stop", "skip")
GAP_SELECTIONS = ("ind_orig", "ind_uniq", "seq_orig", "seq_uniq", "lead", "random")
MAX_CORPORA = 256
LEAST_MIB = 2**-10
"""Of shards and tasks: 1 KiB, since each is a file."""
MAX_WORKERS = 4096
MAX_STEPS_AHEAD = 10_000
MAX_MICRO_BATCHES = 2**20
"""Of one step."""


@dataclass(frozen=True, kw_only=True)
class SourcesConfig:
    """Inputs of each split: paths, globs or URLs (s3://, gs://, hf://) of .jsonl, .json, .csv (all with .gz, .zst),
    .parquet, .tar and .txt files, or datasets://NAME?split=S; an empty list leaves the split out. GLOB?ids=FILE takes
    the files whose names, without their endings, are lines of the file."""

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
    algorithm: str = one_of(ALGORITHMS, "bpe")
    """What is trained: bpe (byte-level, lossless) or unigram (SentencePiece-like, after NFKC; the paper's)."""
    vocab_size: int = at_least(1, 32_000)
    """Entries of a trained tokenizer, special tokens included."""
    max_training_documents: int = at_least(1, 10_000)
    """The tokenizer is trained on this many documents from the start of the sources."""

    def problems(self) -> Iterator[tuple[str, str]]:
        """Settings of this section that contradict each other."""
        if self.algorithm == "bpe" and self.vocab_size < 262:
            yield "vocab_size", f"is {self.vocab_size}; a byte-level BPE needs at least 262 (256 bytes + 6 special)"


@dataclass(frozen=True, kw_only=True)
class CleanConfig:
    """Cleaning and filtering, in this order. Every document that is dropped is counted under the step's name."""

    unicode_form: str | None = one_of(UNICODE_FORMS, "NFC")
    """Normal form of all text: NFC, NFKC, NFD, NFKD, or null."""
    control_characters: bool = True
    """Take out control characters (tabs and line feeds stay; CR LF becomes LF)."""
    min_source_characters: int = at_least(0, 1)
    max_source_characters: int | None = at_least(1, None)
    min_target_characters: int = at_least(0, 1)
    max_target_characters: int | None = at_least(1, None)
    max_target_source_ratio: float | None = positive(None)
    """Longest summary as a share of its document, in characters; null sets no limit."""
    quality: bool = False
    """Drop what is not prose, by the four settings below, which depend on no language."""
    min_letter_share: float = between(0, 1, 0.5)
    """quality: least share of letters among the characters that are not spaces."""
    max_mean_word_characters: float = positive(15.0)
    """quality: greatest mean length of words (of texts in ASCII)."""
    max_repeated_line_share: float = between(0, 1, 0.3)
    """quality: greatest share of characters in lines that repeat an earlier line."""
    max_repeated_words_share: float = between(0, 1, 0.2)
    """quality: greatest share of characters in sequences of five words that repeat an earlier one."""
    held_out_overlap: float | None = between(0, 1, 0.5, exclude=(0,))
    """Drop train and pretrain documents that hold this share of a validation or test document; null keeps them."""
    exact_duplicates: bool = True
    """Drop documents that repeat an earlier one of the split (ignoring case and spacing)."""
    near_duplicates: bool = False
    """Drop documents that resemble an earlier one of the split (MinHash of 5-word shingles, similarity about 0.7)."""

    def problems(self) -> Iterator[tuple[str, str]]:
        """Settings of this section that contradict each other."""
        for name in ("source", "target"):
            low, high = getattr(self, f"min_{name}_characters"), getattr(self, f"max_{name}_characters")
            if high is not None and high < low:
                yield f"max_{name}_characters", f"is {high}, below min_{name}_characters = {low}"


@dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    """`transpooler prepare`: documents to tokenized WebDataset shards."""

    output: str = "shards"
    """New or empty folder or URL that receives tokenizer/, a folder of shards per split, README.md and report.json."""
    scratch: str | None = None
    """Folder in which NAME.incomplete, named like the output, holds unfinished work; nothing else in it is touched.
    null: the folder of the output (of a URL: the working folder)."""
    sources: SourcesConfig = field(default_factory=SourcesConfig)
    sources_folder: str | None = None
    """Folder or URL in which relative sources lie; null: the working folder."""
    source_column: str | tuple[str, ...] | None = None
    """Key of the document, or a template of keys ("{title}\\n{body}"), or a list of these, of which the first that a
    record has is used; null recognises article, document, text. Lists of texts are joined by line feeds."""
    target_column: str | tuple[str, ...] | None = None
    """The same of the summary; null recognises abstract, summary, highlights."""
    source_objects: str | None = None
    """Template of objects inside the document, at any depth ("{speaker}: {content}"); a line of it whose keys are all
    empty is left out. null: an object is no text."""
    target_objects: str | None = None
    """The same of objects inside the summary."""
    record_lists: tuple[str, ...] | None = None
    """Lists of a record, such as questions about it, of which every item becomes a document of its own, with the
    record's other keys beside its own; null: a record is a document."""
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    on_bad_file: str = one_of(BAD_FILE_CHOICES, "stop")
    """What a damaged file (cut short, not what its name says, most records broken) does: stop ends the run and names
    it; skip leaves it out whole and counts it. Files without records are counted, whatever is set here."""
    clean: CleanConfig = field(default_factory=CleanConfig)
    min_source_tokens: int = at_least(1, 16)
    """Shorter documents are dropped (and counted as source_too_short)."""
    max_source_tokens: int | None = at_least(1, None)
    """Longer documents are dropped (source_too_long); null keeps all: the loader truncates."""
    min_target_tokens: int = at_least(1, 2)
    """Shorter summaries are dropped (target_too_short)."""
    max_target_tokens: int | None = at_least(1, 4096)
    """Longer summaries are dropped (target_too_long)."""
    shard_size_mib: float = at_least(LEAST_MIB, 64.0)
    """A shard is closed when it holds this many MiB."""
    keep_source_text: bool = False
    """Store the document's text, too (as source_text in the .json member); summaries are always stored."""
    license: str | None = None
    """Licence of the documents, for the dataset card: an identifier of the Hugging Face hub, such as cc-by-4.0."""
    task_mib: float = at_least(LEAST_MIB, 8.0)
    """Input of one task; after a kill, unfinished tasks are done again."""
    workers: int = between(0, MAX_WORKERS, 0)
    """Tokenizing processes; 0 uses all cores. Output bytes do not depend on it."""
    executor: str = one_of(EXECUTORS, "processes")
    """processes (of this machine) or ray (a Ray cluster; all its machines see the inputs and the scratch folder)."""

    def problems(self) -> Iterator[tuple[str, str]]:
        """Settings of this section that contradict each other."""
        for name in ("source", "target"):
            low, high = getattr(self, f"min_{name}_tokens"), getattr(self, f"max_{name}_tokens")
            if high is not None and high < low:
                yield f"max_{name}_tokens", f"is {high}, below min_{name}_tokens = {low}"
            if (template := getattr(self, f"{name}_objects")) is not None and "{" not in template:
                yield f"{name}_objects", f"is {template!r}, which names no key; write keys in braces, such as {{text}}"
            if getattr(self, f"{name}_column") in ("", ()):
                yield f"{name}_column", "is empty; name a key, or null"


@dataclass(frozen=True, kw_only=True)
class CorpusConfig:
    """One corpus of a mixture."""

    name: str
    """Prefix of the document keys, as in name/key."""
    shards: str
    """Folder or URL written by `transpooler prepare`, with the tokenizer of data.shards."""
    split: str | None = None
    """null takes data.train_split."""
    weight: float = positive(1.0)
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
    objective: str = one_of(OBJECTIVES, "summarize")
    """summarize (source -> target), denoise (BART text infilling) or gap_sentences (PEGASUS)."""
    max_source_tokens: int = at_least(2, 8192, "one token and </s>")
    """Sources are cut to this many tokens, </s> included; denoise and gap_sentences read a random window of as many."""
    max_target_tokens: int = at_least(2, 1024, "one token and </s>")
    """Targets are cut to this many tokens, </s> included."""
    source_prefix_ids: tuple[int, ...] = at_least(0, ())
    """Ids with which every source begins, as BART's do with <s>, NLLB's with a language; they count in
    max_source_tokens."""
    target_prefix_ids: tuple[int, ...] = at_least(0, ())
    """The same for targets; they count in max_target_tokens."""
    batch_size: int = between(1, MAX_MICRO_BATCHES, 32)
    """Documents per optimizer step over all ranks (the global batch); evaluation's too. Not used with batch_tokens."""
    batch_tokens: int | None = at_least(1, None)
    """Source tokens per optimizer step over all ranks, padding included: as many documents as fit. null: batch_size."""
    micro_batch_tokens: int | None = at_least(1, None)
    """Source tokens of one forward pass on one rank, padding included, with batch_tokens; null = max_source_tokens."""
    length_bucket_width: float | None = at_least(0, 0.05)
    """Documents that share a (micro) batch differ in length by at most this share; null turns buckets off."""
    shuffle_shards: int | None = at_least(1, None)
    """Shards whose documents are mixed with each other; null = all. Few keep remote reading local, many mix better."""
    short_first_epochs: int = at_least(0, 0)
    """Curriculum: this many epochs at the start read batches in order of length, shortest first."""
    mask_fraction: float = between(0, 1, 0.3, exclude=(0, 1))
    """denoise: share of tokens inside masked spans."""
    mean_span_tokens: float = at_least(1, 3.0)
    """denoise: mean length of a masked span (Poisson)."""
    permute_sentences: bool = False
    """denoise: shuffle the sentences of the source, as BART's large models did."""
    gap_fraction: float = between(0, 1, 0.2, exclude=(0, 1))
    """gap_sentences: share of sentences taken out and generated."""
    gap_selection: str = one_of(GAP_SELECTIONS, "ind_orig")
    """gap_sentences: ind_orig, ind_uniq, seq_orig, seq_uniq (principal by ROUGE-1), lead or random."""
    gap_noise: float = at_least(0, 0.2)
    """gap_sentences: scores are multiplied by 1 to 1 + this at random, so that epochs differ."""
    gap_kept_fraction: float = between(0, 1, 0.0)
    """gap_sentences: share of the selected sentences that stay in the source, too (PEGASUS-large: 0.2)."""
    prefetch_steps: int = between(1, MAX_STEPS_AHEAD, 2)
    """Global batches read ahead; per worker process, if there are any."""
    workers: int = between(0, MAX_WORKERS, 0)
    """Processes per rank that make batches; 0 = a thread. Batches do not depend on it."""
    cache: str = "~/.cache/transpooler"
    """Folder for shards fetched from a URL; processes of one machine share it."""
    cache_gib: float = positive(64.0)
    """The cache is kept below this size; the shards used least recently go first."""
    fetch_ahead_steps: int = between(0, MAX_STEPS_AHEAD, 16)
    """The shards of this many steps ahead are fetched in the background."""
    fetch_retries: int = between(0, 1000, 5)
    """Further attempts after a failed or damaged transfer, with growing pauses."""
    max_damaged_documents: int = at_least(0, 0)
    """Documents that cannot be read are left out and counted; more than this, over all ranks, end the run."""

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
        """Settings of this section that contradict each other."""
        micro, longest = self.micro_batch_tokens, self.max_source_tokens
        room = micro or longest
        if self.objective == "denoise" and self.max_target_tokens < 3:
            yield "max_target_tokens", f"is {self.max_target_tokens}; denoise needs 3, for <mask>, one token and </s>"
        if micro is not None and self.batch_tokens is None:
            yield "micro_batch_tokens", f"is {micro}, which needs data.batch_tokens"
        if micro is not None and micro < longest:
            yield "micro_batch_tokens", f"is {micro}; one document may have max_source_tokens = {longest}"
        elif self.batch_tokens is not None and self.batch_tokens < room:
            yield "batch_tokens", f"is {self.batch_tokens}, less than one micro batch of {room}"
        elif (self.batch_tokens or 0) > MAX_MICRO_BATCHES * room:
            yield "batch_tokens", f"is {self.batch_tokens}, above {MAX_MICRO_BATCHES:,} micro batches of {room}"
        if (epochs := self.short_first_epochs) and self.shuffle_shards is not None:
            yield "short_first_epochs", f"is {epochs}, which needs all shards at once: shuffle_shards=null"
        names = [corpus.name for corpus in self.mixture]
        if len(set(names)) < len(names):
            yield "mixture", f"has corpora of the same name ({', '.join(names)}); names must differ"
        if len(names) > MAX_CORPORA:
            yield "mixture", f"has {len(names)} corpora; at most {MAX_CORPORA}"
