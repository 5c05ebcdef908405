"""Rows of a Parquet file. Texts are read as bytes: pyarrow decodes whole batches, so one bad row would end them all."""

from collections.abc import Collection, Iterator
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow

_ROWS = 256


def read_rows(file: IO[bytes], sources: Collection[str], others: Collection[str]) -> Iterator[dict[str, Any]]:
    """Yield each row's columns of these names: texts as bytes, whole numbers, (nested) lists and objects of both.

    A value of any other type is True: it is there, but no text. Without a column of `sources` a single row that names
    all columns is yielded, which suffices for the error. Damage raises what pyarrow raises: ArrowException or OSError.
    """
    import pyarrow.parquet

    if not file.seek(0, 2):
        return
    with pyarrow.parquet.ParquetFile(file, page_checksum_verification=True) as table:
        if not table.metadata.num_rows:
            return
        names = table.schema_arrow.names
        wanted = [name for name in names if name in (*sources, *others)]
        if not set(wanted) & set(sources):
            yield dict.fromkeys(names)
            return
        for batch in table.iter_batches(_ROWS, columns=wanted):
            columns = [_to_plain(column).to_pylist() for column in batch.columns]
            for values in zip(*columns, strict=True):
                yield dict(zip(batch.schema.names, values, strict=True))


def _to_plain(column: "pyarrow.Array") -> "pyarrow.Array":
    import pyarrow
    import pyarrow.compute

    plain = _plain_type(column.type)
    if plain is not None:
        return column.cast(plain)
    return pyarrow.compute.if_else(column.is_valid(), True, pyarrow.scalar(None, pyarrow.bool_()))


def _plain_type(kind: "pyarrow.DataType") -> "pyarrow.DataType | None":
    """The type as which a column is converted to Python; None: it holds no texts."""
    import pyarrow
    from pyarrow import types

    if types.is_dictionary(kind):
        return _plain_type(kind.value_type)
    if types.is_integer(kind):
        return kind
    if any(is_text(kind) for is_text in (types.is_string, types.is_binary, types.is_string_view, types.is_binary_view)):
        return pyarrow.binary()
    if types.is_large_string(kind) or types.is_large_binary(kind):
        return pyarrow.large_binary()
    if types.is_struct(kind):
        fields = [(field.name, _plain_type(field.type)) for field in kind]
        return None if any(inner is None for _, inner in fields) else pyarrow.struct(fields)
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        inner = _plain_type(kind.value_type)
        return (
            None if inner is None else pyarrow.large_list(inner) if types.is_large_list(kind) else pyarrow.list_(inner)
        )
    return None
