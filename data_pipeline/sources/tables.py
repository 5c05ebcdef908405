"""Records of files that are read whole or row by row: .json (an array or one object) and .csv."""

import csv
import json
from collections.abc import Iterator
from typing import IO, Any

from transpooler.data_pipeline.sources.damage import DamagedFileError

_MAX_FIELD = 2**31 - 1
"""Characters of a CSV field: a document may be longer than the 131,072 that Python allows at first."""


def holds_lines(file: IO[bytes]) -> bool:
    """Whether a .json file has an object on its first line, and so is read as JSON Lines."""
    first = next((line for line in file if line.strip()), b"").removeprefix(b"\xef\xbb\xbf")
    try:
        return isinstance(json.loads(first), dict)
    except (ValueError, RecursionError):
        return False


def read_json_items(location: str, file: IO[bytes]) -> Iterator[tuple[int, Any]]:
    """Yield (number, item) of an array or of the one object; a file without any is the reason `empty_file`.

    Holds the whole file in memory. Raises DamagedFileError.
    """
    data = file.read()
    try:
        value = json.loads(data.decode("utf-8-sig")) if data.strip() else []
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise _not_utf8(f"{location}:{line}") from None
    except json.JSONDecodeError as error:
        where = f"{location}:{error.lineno}"
        raise DamagedFileError(f"{where}: not valid JSON ({error.msg}, column {error.colno}); mend the file") from None
    except RecursionError:
        raise DamagedFileError(f"{location}:1: not valid JSON (nested too deeply); mend the file") from None
    items = value if isinstance(value, list) else [value]
    for number, item in enumerate(items, start=1):  # what is no object goes on as JSON, for a text would be a reason
        yield number, item if isinstance(item, dict) else json.dumps(item).encode()
    if not items:
        yield 1, "empty_file"


def read_csv_rows(location: str, file: IO[bytes]) -> Iterator[tuple[int, Any]]:
    """Yield (first line, row by the names in the first row); a row of another length is the reason `wrong_fields`.

    Raises DamagedFileError.
    """
    csv.field_size_limit(_MAX_FIELD)
    rows = csv.reader(_decode_lines(file), strict=True)
    names: list[str] | None = None
    line = 0
    try:
        for row in rows:
            first, line = line + 1, rows.line_num
            if names is None:
                names = row
            elif row:
                yield first, dict(zip(names, row, strict=True)) if len(row) == len(names) else "wrong_fields"
    except UnicodeDecodeError:
        raise _not_utf8(f"{location}:{rows.line_num + 1}") from None
    except csv.Error as error:
        raise DamagedFileError(f"{location}:{line + 1}: broken CSV file ({error}); mend the file") from None


def _decode_lines(file: IO[bytes]) -> Iterator[str]:
    """Yield lines as text, one at a time, so that an error has its line."""
    for number, line in enumerate(file):
        yield line.decode("utf-8" if number else "utf-8-sig")


def _not_utf8(where: str) -> DamagedFileError:
    return DamagedFileError(f"{where}: not UTF-8; convert the file, for example with iconv")
