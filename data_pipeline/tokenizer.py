"""Tokenizers: train a byte-level BPE or a unigram model, or load any fast one and add the special tokens it lacks.

These tokenizers add no special tokens to a text: shards hold raw ids, and the loader appends </s>. A text that contains
the characters of a special token (such as "<mask>" in source code) is encoded as those characters (tokenizer_rules.py).
"""

import hashlib
import json
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from transpooler.common import UserError, local_path
from transpooler.data_pipeline.tokenizer_rules import fill_holes, has_holes, shield_special_tokens, without_rules

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SPECIAL_TOKENS = ("<s>", "<pad>", "</s>", "<unk>", "<mask>", "<gap>")
"""In a tokenizer trained here these have the ids 0 to 5."""
GAP_TOKEN = "<gap>"
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_OTHER_FILES = ("vocab.json", "*.model", "*.spm", "vocab.txt")
"""Files of tokenizers that older releases of weights have in place of tokenizer.json."""
_PLAIN: Any = {"clean_up_tokenization_spaces": False, "split_special_tokens": True}
_ROLES = ("bos_token", "pad_token", "eos_token", "unk_token", "mask_token")


@dataclass(frozen=True, slots=True)
class SpecialIds:
    """Ids of the special tokens of one tokenizer."""

    bos: int
    pad: int
    eos: int
    unk: int
    mask: int
    gap: int


def train_tokenizer(texts: Iterator[str], vocab_size: int, algorithm: str = "bpe") -> "PreTrainedTokenizerFast":
    """Train a tokenizer with at most `vocab_size` entries.

    bpe is byte-level, without a prefix space: decode(encode(text)) == text for every text, and the same texts give the
    same tokenizer. unigram (Kudo 2018) works on text in NFKC with single spaces, as SentencePiece does, and unknown
    characters become <unk>. The library trains it in a random order: for reproducible bytes train once, and name the
    tokenizer's folder from then on. UserError: the vocabulary cannot hold the texts' characters.
    """
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=_train_backend(texts, vocab_size, algorithm),
        additional_special_tokens=[GAP_TOKEN],
        model_input_names=["input_ids", "attention_mask"],
        **dict(zip(_ROLES, SPECIAL_TOKENS, strict=False)),
        **_PLAIN,
    )
    shield_special_tokens(tokenizer)
    return tokenizer


def _train_backend(texts: Iterator[str], vocab_size: int, algorithm: str) -> Any:
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    settings: Any = {"vocab_size": vocab_size, "special_tokens": list(SPECIAL_TOKENS), "show_progress": False}
    backend: Any
    trainer: Any
    if algorithm == "unigram":
        backend = Tokenizer(models.Unigram())
        backend.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(r"\s+"), " ")])
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
        backend.decoder = decoders.Metaspace(prepend_scheme="first")
        trainer = trainers.UnigramTrainer(unk_token="<unk>", **settings)
    else:
        backend = Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), **settings)
    try:
        backend.train_from_iterator(texts, trainer)
    except Exception as error:
        if type(error) is not Exception:  # of the texts; the library raises bare Exception
            raise
        remedy = "raise it, or choose prepare.tokenizer.algorithm=bpe"
        raise UserError(f"prepare.tokenizer.vocab_size: is {vocab_size}, too few ({error}); {remedy}") from error
    return backend


def load_tokenizer(folder: str | Path) -> "PreTrainedTokenizerFast":
    """Load a fast tokenizer (a folder, a bare tokenizer.json, or a hub id) and add the special tokens it lacks.

    Raises UserError where there is none or it cannot be read.
    """
    path = local_path(folder)
    file = path / "tokenizer.json" if path.is_dir() else path
    if not file.is_file() and not path.exists() and HUB_ID.fullmatch(str(folder)):
        return _load_by_class(str(folder), "no such folder, and the hub gives no tokenizer")
    if not file.is_file() and path.is_dir() and any(any(path.glob(name)) for name in _OTHER_FILES):
        return _load_by_class(str(path), "its tokenizer files cannot be read")
    if not file.is_file():
        raise UserError(f"{path}: no tokenizer here: expected a folder with tokenizer.json (save_pretrained writes it)")
    try:
        tokenizer = _load_file(file)
        if has_holes(tokenizer):
            with TemporaryDirectory() as folder:
                filled = Path(folder) / "tokenizer.json"
                if (config := file.with_name("tokenizer_config.json")).is_file():
                    shutil.copy(config, folder)
                state = json.loads(file.read_text(encoding="utf-8"))
                fill_holes(state, str(file))
                filled.write_text(json.dumps(state), encoding="utf-8")
                tokenizer = _load_file(filled)
    except UserError:
        raise
    except Exception as error:  # the tokenizers library raises bare Exception for a file that it cannot parse
        raise UserError(f"{file}: cannot load the tokenizer: {str(error).splitlines()[0]}") from error
    _add_missing_tokens(tokenizer)
    shield_special_tokens(tokenizer)
    return tokenizer


def _load_file(file: Path) -> "PreTrainedTokenizerFast":
    from transformers import PreTrainedTokenizerFast

    if file.with_name("tokenizer_config.json").is_file():
        return PreTrainedTokenizerFast.from_pretrained(file.parent, local_files_only=True, **_PLAIN)
    return PreTrainedTokenizerFast(tokenizer_file=str(file), **_PLAIN)


def _load_by_class(name: str, problem: str) -> "PreTrainedTokenizerFast":
    """The tokenizer of the hub, or of a folder without tokenizer.json, as the class that it names makes it."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    try:
        tokenizer = AutoTokenizer.from_pretrained(name, **_PLAIN)
    except Exception as error:  # no network, no such repository, no permission: each has its own
        reason = str(error).splitlines()[0]
        raise UserError(f"{name}: {problem} ({reason})") from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise UserError(f"{name}: has no fast tokenizer (tokenizer.json); choose another")
    with TemporaryDirectory() as folder:  # its class may have rules of its own: what counts is its tokenizer.json
        tokenizer.save_pretrained(folder)
        return load_tokenizer(folder)


def fingerprint(tokenizer: "PreTrainedTokenizerFast") -> str:
    """Return the SHA-256 (hex) of all that decides ids: the serialised tokenizer without padding and truncation.

    Nor do the rules of tokenizer_rules.py count, nor what adds special tokens: documents are encoded without, and an
    export's tokenizer adds </s>.
    """
    return _hash(tokenizer, post_processor=None)


def has_fingerprint(tokenizer: "PreTrainedTokenizerFast", recorded: str) -> bool:
    """Whether `recorded` is the tokenizer's, as it is computed now or was when special tokens counted."""
    return recorded in (fingerprint(tokenizer), _hash(tokenizer))


def _hash(tokenizer: "PreTrainedTokenizerFast", **changes: Any) -> str:
    state = without_rules(json.loads(tokenizer.backend_tokenizer.to_str())) | changes
    state = {name: value for name, value in state.items() if name not in ("padding", "truncation")}
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def special_ids(tokenizer: "PreTrainedTokenizerFast") -> SpecialIds:
    """Return the ids of the special tokens, whatever their names in this tokenizer."""
    ids = {role.removesuffix("_token"): getattr(tokenizer, f"{role}_id") for role in _ROLES}
    gap: Any = tokenizer.convert_tokens_to_ids(GAP_TOKEN)
    return SpecialIds(**ids, gap=gap)


def framing(tokenizer: "PreTrainedTokenizerFast", prefix_ids: Sequence[int]) -> "PreTrainedTokenizerFast":
    """A copy that begins every text by these ids and ends it by </s>, as the documents of the training were."""
    import copy

    from tokenizers.processors import TemplateProcessing

    ending: Any = copy.deepcopy(tokenizer)
    ids = [*prefix_ids, tokenizer.eos_token_id]
    *first, eos = tokens = [str(token) for token in tokenizer.convert_ids_to_tokens(ids)]
    ending.backend_tokenizer.post_processor = TemplateProcessing(
        single=[*first, "$A", eos],
        pair=[*first, "$A", eos, "$B:1", f"{eos}:1"],
        special_tokens=list(zip(tokens, ids, strict=True)),
    )
    return ending


def _add_missing_tokens(tokenizer: "PreTrainedTokenizerFast") -> None:
    missing: dict[str, Any] = {
        role: token
        for role, token in zip(_ROLES, SPECIAL_TOKENS, strict=False)
        if getattr(tokenizer, role, None) is None
    }
    if GAP_TOKEN not in tokenizer.get_vocab():
        tokenizer.add_tokens([GAP_TOKEN], special_tokens=True)
    if missing:
        tokenizer.add_special_tokens(missing)
