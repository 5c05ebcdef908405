"""The manifest of an output, report.json: settings, inputs, splits, and size and SHA-256 of every file.

It is written last, so an output that holds it is complete. While an output is being filled, the same content stands in
UPLOAD_NAME, which tells whose the files are that lie there already. Earlier versions listed no files.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from transpooler.common import INCOMPLETE_SUFFIX, UserError
from transpooler.data_pipeline.shards.dataset import DOCUMENTS_NAME, INDEX_NAME
from transpooler.data_pipeline.shards.store import FileStore

REPORT_NAME = "report.json"
REPORT_FORMAT = 1
UPLOAD_NAME = "transpooler-upload.json"


def read_report(store: FileStore, name: str = REPORT_NAME) -> dict[str, Any] | None:
    """Read a manifest; None where there is none. UserError: it is no JSON object."""
    content = store.read(name)
    if content is None:
        return None
    try:
        report = json.loads(content)
    except ValueError as error:
        raise UserError(f"{store.location}/{name}: not valid JSON ({error}); prepare again") from error
    if not isinstance(report, dict):
        raise UserError(f"{store.location}/{name}: was not written by `transpooler prepare`")
    return report


def describe_files(folder: Path, indexes: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return size and SHA-256 of the files that a preparation made in `folder`; those of shards are in its indexes.

    UserError: `folder` holds something else, which must not be published. What killed processes left is removed.
    """
    store, files = FileStore(folder), {}
    shards = {f"{split}/{shard['name']}": shard for split, index in indexes.items() for shard in index["shards"]}
    own = {f"{split}/{name}" for split in indexes for name in (INDEX_NAME, DOCUMENTS_NAME)}
    own |= {"README.md", "lengths.svg", REPORT_NAME, *shards}
    for name, size in sorted(store.list_files().items()):
        if name.endswith(INCOMPLETE_SUFFIX):
            store.remove(name)
        elif name not in own and not name.startswith("tokenizer/"):
            raise UserError(f"{folder / name}: is not part of this preparation; move it elsewhere and run it again")
        elif name != REPORT_NAME:
            sha256 = shards[name]["sha256"] if name in shards else store.compute_sha256(name)
            files[name] = {"size_bytes": size, "sha256": sha256}
    return files


def compute_own_sha256(report: dict[str, Any]) -> str:
    """Return the SHA-256 of a manifest's content, but for its key `sha256`."""
    content = {name: value for name, value in report.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def holds_all_files(store: FileStore, report: dict[str, Any]) -> bool:
    """Whether every file of the manifest is there in its size."""
    found = store.list_files()
    return all(found.get(name) == entry["size_bytes"] for name, entry in report["files"].items())


def compare_files(
    store: FileStore, report: dict[str, Any], found: dict[str, int], read_already: Iterable[str], top: str = ""
) -> Iterator[str]:
    """Yield how the files that were found differ from a manifest, as FILE: PROBLEM.

    `read_already` were compared with an index. `top`: look only at what is in this folder, such as "train/".
    """

    def name_of(name: str) -> str:
        return f"{store.location}/{name}"

    if report.get("sha256") != compute_own_sha256(report):
        yield f"{name_of(REPORT_NAME)}: differs from what was written"
    files: dict[str, Any] = {name: entry for name, entry in report["files"].items() if name.startswith(top)}
    others = {name for name in found if name.startswith(top) and not _is_private(name)} - files.keys()
    for names, problem in ((files.keys() - found.keys(), "missing"), (others, f"not in {REPORT_NAME}")):
        present = (found if problem == "missing" else files).keys()
        for name in _name_whole_folders(names - set(read_already), present):
            yield f"{name_of(name)}: {problem}"
    for name in sorted(files.keys() & found.keys() - set(read_already)):
        entry = files[name]
        if found[name] != entry["size_bytes"]:
            yield f"{name_of(name)}: {found[name]} bytes instead of {entry['size_bytes']}"
        elif store.compute_sha256(name) != entry["sha256"]:
            yield f"{name_of(name)}: checksum differs from {REPORT_NAME}"


def _is_private(name: str) -> bool:
    """Whether a file is the manifest itself, or of a tool (.git, .cache), as their hidden names say."""
    return name in (REPORT_NAME, UPLOAD_NAME) or any(part.startswith(".") for part in name.split("/"))


def _name_whole_folders(names: set[str], others: Iterable[str]) -> list[str]:
    """Replace the names in folders at the top that hold none of `others` by the folder's."""
    shared = {other.split("/")[0] for other in others}
    return sorted({name if name.split("/")[0] in shared else name.split("/")[0] for name in names})
