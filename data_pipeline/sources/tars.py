"""Samples of WebDataset tars. The module `tarfile` takes a damaged header for the end; here it is an error."""

import json
import tarfile
from collections.abc import Iterator
from typing import IO, Any


class _StrictMember(tarfile.TarInfo):
    """Headers that are damaged or missing raise ReadError, and nothing but zeros may follow the archive's end."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> "_StrictMember":
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            while block := archive.fileobj.read(1 << 20):
                if block.count(0) < len(block):
                    raise tarfile.ReadError("more data follows its end") from None
            raise
        except tarfile.HeaderError as error:
            if isinstance(error, tarfile.EmptyHeaderError):  # type: ignore[attr-defined]
                if archive.offset == 0:  # a file of no bytes
                    raise tarfile.EOFHeaderError("") from None  # type: ignore[attr-defined]
                raise tarfile.ReadError("its closing zeros are missing") from None
            raise tarfile.ReadError(str(error)) from error


def read_samples(file: IO[bytes]) -> Iterator[dict[str, Any] | str]:
    """Yield each sample: the keys of KEY.json, and other members (bytes) under their extension.

    A sample that cannot be read is the reason why, `bad_json` or `duplicate_member`. As in webdataset, members whose
    name begins with a dot (a Mac's `._` files) belong to no sample. Raises tarfile.TarError for damage.
    """
    key: tuple[str, str] | None = None
    sample: dict[str, Any] = {}
    problem = ""
    with tarfile.open(fileobj=file, mode="r|", tarinfo=_StrictMember) as tar:
        for member in tar:
            folder, _, name = member.name.rpartition("/")
            if not member.isfile() or name.startswith("."):
                continue
            stem, _, extension = name.partition(".")
            if key != (folder, stem):
                if key:
                    yield problem or sample
                key, sample, problem = (folder, stem), {"__key__": stem}, ""
                seen: set[str] = set()
            if extension in seen:
                problem = "duplicate_member"
            seen.add(extension)
            data = tar.extractfile(member).read()  # type: ignore[union-attr]
            if extension != "json":
                sample[extension.removesuffix(".txt")] = data
            elif (values := _parse_json(data)) is not None:
                sample.update(values)
            else:
                problem = problem or "bad_json"
        if key:
            yield problem or sample


def _parse_json(data: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
