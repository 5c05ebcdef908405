"""Weights by name: a folder, or a repository of the Hugging Face hub, which is downloaded once."""

import re
from pathlib import Path

from transpooler.common import UserError

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
FILES = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja")
"""What is downloaded: configurations, weights, tokenizers; no code."""


def find_weights(source: str | Path) -> Path:
    """The folder itself, or that of the hub's repository in the local cache, downloaded if it is not there.

    A source that is neither is returned as it is. UserError where the hub cannot be reached or has no such repository.
    """
    path = Path(source).expanduser()
    if path.exists() or not _HUB_ID.fullmatch(str(source)) or path.parent.exists():
        return path
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(source), allow_patterns=list(FILES)))
    except Exception as error:  # no network, no such repository, no permission: each has its own
        reason = str(error).splitlines()[0]
        raise UserError(f"{source}: no such folder, and the hub does not give it ({reason})") from error
