"""Tensors of a model folder, read from safetensors one at a time."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transpooler.common import UserError

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
        return tuple(self.slices[name].get_shape())

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
    """All tensors of a folder's safetensors files. UserError where there are none, or a broken one."""
    from safetensors import safe_open

    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise UserError(f"{folder}: has no .safetensors file; save the model with `save_pretrained` again")
    with ExitStack() as stack:
        found: dict[str, Any] = {}
        try:
            for path in files:
                file: Any = stack.enter_context(safe_open(path, framework="pt"))
                found |= {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
            yield StoredTensors(found)
        except UserError:
            raise
        except ValueError:
            raise
        except Exception as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"{folder}: cannot load the model: {reason}; download or save it again") from error
