"""What a speed benchmark measures, and how long it may take. No torch here."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transpooler.common import UserError, read_json, split_list, write_json

PHASES = ("train", "infer")
SETTINGS_FILE = "settings.json"
UNMEASURED = ("failed", "skipped")
RESULT_KEYS = {"architecture", "length", "phase", "status", "note"}
DAMAGED = "delete it and run the command again"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What all cells of a folder share; numbers of other settings do not belong into one table."""

    device: str = "cpu"
    precision: str = "fp32"
    """fp32 or bf16 (weights and activations)."""
    threads: int = 1
    clock: str = "wall"
    """wall, or process: CPU seconds of the process, which other load on the machine hardly changes."""
    batch_size: int = 1
    target_tokens: int = 128
    """Tokens of the target in training, and generated for each document."""
    num_beams: int = 4
    vocab_size: int = 32_000
    overrides: tuple[str, ...] = ()
    """key=value settings of our own models."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Of one cell."""

    repeats: int = 5
    """Measured runs, after one to warm up; fewer where half of time_limit_s is over."""
    time_limit_s: float = 600.0
    memory_limit_gib: float = 0.0
    """Resident memory of the process; 0 = no limit but the machine's (or GPU's) own."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One process: an architecture at a length, training or inference."""

    architecture: str
    length: int
    phase: str

    @property
    def name(self) -> str:
        return f"{self.architecture}-{self.length}-{self.phase}"

    def path(self, folder: Path) -> Path:
        """Its result."""
        return folder / "cells" / f"{self.name}.json"


def read_cell(path: Path) -> dict[str, Any]:
    """Read a cell's result; UserError for any other file."""
    result = read_json(path, DAMAGED)
    if not isinstance(result, dict) or not result.keys() >= RESULT_KEYS:
        raise UserError(f"{path}: not the result of a cell; {DAMAGED}")
    return result


def read_cells(folder: Path) -> list[dict[str, Any]]:
    """Read all results of a folder."""
    return [read_cell(path) for path in sorted((folder / "cells").glob("*.json"))]


def keep_settings(folder: Path, settings: Settings) -> None:
    """Write the settings into the folder; UserError if it holds measurements with others (failures are none)."""
    path, values = folder / SETTINGS_FILE, asdict(settings) | {"overrides": list(settings.overrides)}
    measured = any(cell["status"] not in UNMEASURED for cell in read_cells(folder))
    if measured and path.is_file() and (before := read_json(path, DAMAGED)) != values:
        changed = ", ".join(f"{key} {before.get(key)!r}" for key in values if before.get(key) != values[key])
        raise UserError(f"{folder}: holds measurements with {changed}; choose another --output folder")
    write_json(path, values)


def parse_lengths(text: str) -> list[int]:
    """Parse '2k,8k' as numbers of tokens, each once."""
    return list(dict.fromkeys(parse_length(part) for part in split_list(text)))


def parse_length(text: str) -> int:
    """Parse '8k' or '8192' as a number of tokens."""
    number = text.strip().lower()
    value = number.removesuffix("k")
    if not value.isdecimal() or int(value) < 1:
        raise UserError(f"--lengths: {text!r} is not a number of tokens; write 8192 or 8k")
    return int(value) * (1024 if number.endswith("k") else 1)


def make_result(cell: Cell, status: str, note: str = "", **values: Any) -> dict[str, Any]:
    """Make a cell's result; status: ok, out_of_memory, time_limit, failed or skipped."""
    return {**asdict(cell), "status": status, "note": note, **values}


def parse_phases(text: str) -> list[str]:
    """Parse 'train,infer' as phases, each once."""
    parts = split_list(text)
    if wrong := [part for part in parts if part not in PHASES]:
        raise UserError(f"--phases: {wrong[0]!r} is unknown; choose among {', '.join(PHASES)}")
    return parts
