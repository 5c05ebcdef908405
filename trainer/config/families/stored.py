"""Tensors of a model folder, read one at a time."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transpooler.common import UserError, read_json

if TYPE_CHECKING:
    from torch import Tensor


class StoredTensors(Mapping[str, Any]):
    """Name -> a slice of an open file, which reads what is asked of it."""

    def __init__(self, slices: dict[str, Any]) -> None:
        self.slices = slices

    def __getitem__(self, name: str) -> Any:
        return self.slices[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.slices)

    def __len__(self) -> int:
        return len(self.slices)

    def shape(self, name: str) -> tuple[int, ...]:
        """Its shape, without reading it."""
        item = self.slices[name]
        return tuple(item.get_shape() if hasattr(item, "get_shape") else item.shape)

    def read(self, name: str, first_row: int = 0) -> "Tensor":
        """The tensor, from its row `first_row` on."""
        return self.slices[name][first_row:] if self.shape(name) else self.slices[name][...]

    def equal(self, first: str, second: str) -> bool:
        """Whether two tables are equal, without holding both."""
        if self.shape(first) != self.shape(second):
            return False
        one, other = self.slices[first], self.slices[second]
        starts = range(0, self.shape(first)[0], 4096)
        return all(bool((one[row : row + 4096] == other[row : row + 4096]).all()) for row in starts)


@contextmanager
def open_tensors(folder: Path) -> Iterator[StoredTensors]:
    """All tensors of a folder's safetensors files, or of pytorch_model.bin. UserError for none, or a broken one."""
    safe, older = (_files(folder, *names) for names in (("model", ".safetensors"), ("pytorch_model", ".bin")))
    if not safe and not older:
        raise UserError(f"{folder}: has no weights (model.safetensors or pytorch_model.bin); download or save it again")
    with ExitStack() as stack:
        found: dict[str, Any] = {}
        for path in safe or older:
            try:
                found |= _open_safe(path, stack) if safe else _load_older(path)
            except Exception as error:  # each library has its own
                reason = str(error).splitlines()[0]
                raise UserError(f"{path}: cannot load the model: {reason}; download or save it again") from error
        yield StoredTensors(found)


def _files(folder: Path, name: str, suffix: str) -> list[Path]:
    """The file of the weights, or those that its index names, or all."""
    index = folder / f"{name}{suffix}.index.json"
    if (folder / f"{name}{suffix}").is_file():
        return [folder / f"{name}{suffix}"]
    if index.is_file():
        return [folder / part for part in sorted(set(read_json(index)["weight_map"].values()))]
    return sorted(folder.glob(f"*{suffix}" if suffix == ".safetensors" else f"{name}*{suffix}"))


def _open_safe(path: Path, stack: ExitStack) -> dict[str, Any]:
    from safetensors import safe_open

    file: Any = stack.enter_context(safe_open(path, framework="pt"))
    return {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)


def _load_older(path: Path) -> dict[str, Any]:
    """Tensors of a pickle, of which nothing but tensors is read; mapped into memory where its format allows it."""
    import zipfile

    import torch

    found = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    return {name: item for name, item in found.items() if isinstance(item, torch.Tensor)}
