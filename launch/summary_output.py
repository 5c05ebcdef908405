"""Where `summarize` writes: to standard output, or to a file that is complete or absent, and goes on where it was.

OUTPUT.incomplete grows result by result. Beside it OUTPUT.incomplete.log says how the run was made, and after each
result how long the file was, so that a second start knows what is finished, even where the first one was killed.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from itertools import takewhile
from pathlib import Path
from typing import IO, Any, NamedTuple

from transpooler import __version__
from transpooler.common import (
    INCOMPLETE_SUFFIX,
    UserError,
    atomic_write,
    list_some,
    lock_alone,
    one_line,
    say,
    sha256_of,
)
from transpooler.launch.input_documents import InputFile, is_stream
from transpooler.trainer.config.evaluation import GenerationConfig

OPTIONS = ("json", "json_input", "no_sources", "max_source_tokens", "column", "stream", "keep")
"""Of the command line: what decides the results, beside the settings of generation."""
MODEL_FILES = ("*.json", "*.safetensors", "*.bin")


class SummaryOutput(NamedTuple):
    """An output that is open."""

    write: Callable[[str], object]
    """Writes one result, which is then safe from kills."""
    num_done: int
    """How many results were there."""


class _Finished(NamedTuple):
    """What an earlier run left of an output."""

    num_done: int = 0
    num_bytes: int = 0
    """Of OUTPUT.incomplete."""
    log_bytes: int = 0
    """Of its log."""


def describe_run(
    parsed: argparse.Namespace, generation: GenerationConfig, inputs: Sequence[InputFile]
) -> dict[str, Any] | None:
    """All that decides a run's results, as JSON holds it; None where no second start can go on.

    That is so with a page, which shows all documents, and where an input can be read only once.
    """
    if parsed.output is None or parsed.html is not None or any(is_stream(entry.path) for entry in inputs):
        return None
    from transpooler.data_pipeline.sources.locations import is_remote
    from transpooler.data_pipeline.sources.stamps import describe_inputs

    def stamp(path: str) -> Any:
        return next(describe_inputs([path], {})) if is_remote(path) else sha256_of(Path(path))

    files = sorted({path for pattern in MODEL_FILES for path in parsed.model.rglob(pattern) if path.is_file()})
    values = {
        "version": __version__,
        **{name: getattr(parsed, name) for name in OPTIONS},
        **asdict(generation),
        "the model": {str(path.relative_to(parsed.model)): sha256_of(path) for path in files},
        "the inputs": [[entry.name, stamp(entry.path)] for entry in inputs],
    }
    described: dict[str, Any] = json.loads(json.dumps(values))
    return described


@contextmanager
def open_output(path: Path | None, settings: Mapping[str, Any] | None) -> Iterator[SummaryOutput]:
    """Open standard output (None) or a file; of a file, what a run with the same settings has finished is kept.

    UserError where OUTPUT.incomplete holds results of a run with others, or is somebody else's.
    """
    if path is None:
        yield SummaryOutput(lambda text: print(text, flush=True), 0)
        return
    incomplete = path.with_name(path.name + INCOMPLETE_SUFFIX)
    log_path = incomplete.with_name(f"{incomplete.name}.log")
    _require_own(incomplete, log_path)
    with _open_log(log_path, path) as log:
        found = _find_finished(incomplete, log_path, settings)
        os.truncate(log_path, found.log_bytes)
        if found.num_done:
            os.truncate(incomplete, found.num_bytes)
            say(f"{incomplete}: holds {found.num_done:,} summaries; goes on behind them")
        else:
            incomplete.unlink(missing_ok=True)
        yield from _write_results(path, incomplete, log, settings, found)


@contextmanager
def _open_log(log_path: Path, path: Path) -> Iterator[IO[bytes]]:
    """The log of an output, which at most one process has open; a buffer would fail once more when it is closed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with log_path.open("ab", buffering=0) as log:
        if not lock_alone(log.fileno(), log_path):
            raise UserError(f"{path}: another `transpooler summarize` is writing it; wait for its end")
        yield log


def _write_results(
    path: Path, incomplete: Path, log: IO[bytes], settings: Mapping[str, Any] | None, found: _Finished
) -> Iterator[SummaryOutput]:
    """Yield the output once; when the caller is done, give the file its name."""
    log_path = Path(log.name)
    num_written, num_bytes = found.num_done, found.num_bytes

    def write(text: str) -> None:
        nonlocal num_written, num_bytes
        data = f"{text}\n".encode()
        file.write(data)
        file.flush()
        num_written, num_bytes = num_written + 1, num_bytes + len(data)
        _write_line(log, str(num_bytes))

    try:
        with atomic_write(path, "ab", keep=True) as file:
            if not found.num_done:
                _write_line(log, json.dumps(settings))
            yield SummaryOutput(write, found.num_done)
        log_path.unlink()
    except BaseException:
        if num_written:
            kept = f"{incomplete} keeps the {num_written:,} summaries that were finished"
            print(one_line(kept), file=sys.stderr, flush=True)  # belongs to an error, so --quiet does not silence it
        else:
            incomplete.unlink(missing_ok=True)
            log_path.unlink(missing_ok=True)
        raise


def _write_line(log: IO[bytes], text: str) -> None:
    """Append a line; near the end of the disk one call may write a part, and say so only by its result."""
    data = f"{text}\n".encode()
    while data:
        data = data[log.write(data) :]


def _find_finished(incomplete: Path, log: Path, settings: Mapping[str, Any] | None) -> _Finished:
    """What can be kept of an earlier run; UserError where it was another one."""
    if not incomplete.is_file() or not incomplete.stat().st_size:
        return _Finished()
    first, *rest = log.read_bytes().splitlines(keepends=True) or [b""]
    size = incomplete.stat().st_size
    # A kill, or a power failure, may have cut the log, or left zeros.
    ends = list(takewhile(lambda line: line.endswith(b"\n") and line.strip().isdigit() and int(line) <= size, rest))
    try:
        before = json.loads(first)
    except ValueError:
        before = None
    if before is None or not ends:
        say(f"{incomplete}: begun anew; {'a page or a pipe needs all' if settings is None else 'no result is known'}")
        return _Finished()
    if settings is None:
        holds = f"holds {len(ends):,} summaries of a run that can go on, which one with a page or a pipe would do anew"
        raise UserError(f"{incomplete}: {holds}; start that one again, or remove the file to begin anew")
    if changed := [name for name in {**before, **settings} if before.get(name) != settings.get(name)]:
        what = list_some(_explain(name, before.get(name), settings.get(name)) for name in changed)
        holds = f"holds {len(ends):,} summaries of a run with other settings ({what})"
        raise UserError(f"{incomplete}: {holds}; start that one again to go on, or remove the file to begin anew")
    return _Finished(len(ends), int(ends[-1]), len(first) + sum(len(line) for line in ends))


def _require_own(incomplete: Path, log: Path) -> None:
    """UserError unless both files are absent or left by an earlier run, whose log stands beside all that it wrote."""
    for path in (incomplete, log):
        if os.path.lexists(path) and (path.is_symlink() or not path.is_file()):
            raise UserError(f"{path}: is in the way and no regular file; move it, or choose another --output")
    begins = log.read_bytes()[:4] if log.is_file() else None
    if begins is None and incomplete.is_file() and incomplete.stat().st_size:
        what = f"{incomplete}: was not left by `transpooler summarize` (no {log.name} beside it)"
    elif begins and not begins.startswith((b"{", b"null", b"\0")):  # what describe_run gives, or a power failure left
        what = f"{log}: was not left by `transpooler summarize`"
    else:
        return
    raise UserError(f"{what}; move it, or choose another --output")


def _explain(name: str, before: Any, now: Any) -> str:
    if isinstance(before, dict | list) or isinstance(now, dict | list):
        return f"{name} changed"
    return f"{name} was {before}, is {now}"
