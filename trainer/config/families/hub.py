"""Weights by name: a folder, or a repository of the Hugging Face hub, which is downloaded once."""

from functools import cache
from pathlib import Path

from transpooler.common import UserError, local_path
from transpooler.data_pipeline.tokenizer import HUB_ID

FILES = ("*.json", "*.safetensors", "*.model", "*.spm", "*.txt", "*.jinja")
"""What is downloaded: configurations, weights, tokenizers; no code."""
OLDER_WEIGHTS = ("pytorch_model*.bin",)
"""Downloaded where there is no safetensors file."""


def find_weights(source: str | Path) -> Path:
    """The folder itself, or that of the hub's repository in the local cache, downloaded if it is not there.

    A source that is neither is returned as it is. UserError where the hub cannot be reached or has no such repository.
    """
    path = local_path(source)
    if path.exists() or not HUB_ID.fullmatch(str(source)) or path.parent.exists():
        return path
    return _download(str(source))


def find_weights_if_there(source: str | Path) -> Path:
    """As `find_weights`, but a folder that an earlier run has yet to write is no error, though it looks like an id."""
    try:
        return find_weights(source)
    except UserError:
        return Path(source)


@cache
def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(name, allow_patterns=list(FILES)))
        if not any(folder.glob("*.safetensors")):
            folder = Path(snapshot_download(name, allow_patterns=[*FILES, *OLDER_WEIGHTS]))
        return folder
    except Exception as error:  # no network, no such repository, no permission: each has its own
        reason = str(error).splitlines()[0]
        raise UserError(f"{name}: no such folder, and the hub does not give it ({reason})") from error
