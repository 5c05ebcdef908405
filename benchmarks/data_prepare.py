"""Speed and memory of `transpooler prepare`, beside bare `tokenizers` on the same text.

    python -m transpooler.benchmarks.data_prepare speed --data papers.jsonl.gz --tokenizer FOLDER_OR_JSON
    python -m transpooler.benchmarks.data_prepare memory --data papers.jsonl.gz --tokenizer FOLDER_OR_JSON

Speed: all sides use all cores and take turns; files are in the page cache. Bare: texts are read and the tokenizer is
loaded and warm before the clock starts; 64 texts a call (more are not faster); ids are counted and thrown away.
`encode_batch` also finds each token's place in the text; `encode_batch_fast`, which `prepare` uses, does not.
`prepare` is the whole command: starting Python and its worker processes, loading the tokenizer, hashing, unpacking,
parsing, cleaning, tokenizing, finding duplicates, writing shards with checksums and fsync, the dataset card.

Seconds are those of the clock, and of all cores together (`cpu_s`), which other users of the machine hardly change.

Memory: the largest sum of the resident memory of all its processes, looked at 20 times a second.
"""

import argparse
import functools
import gzip
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil

from transpooler.benchmarks.harness import measure, write_results
from transpooler.common import resident_mib

NUM_FILES = 64


def build_bare(data: str, tokenizer: str) -> dict[str, Callable[[], int]]:
    """Name -> a function that tokenizes all texts, 64 at a time, and returns the number of tokens."""
    from transpooler.data_pipeline.sources.columns import Columns
    from transpooler.data_pipeline.sources.documents import RawDocument, read_documents
    from transpooler.data_pipeline.tokenizer import load_tokenizer

    documents = [
        item for item in read_documents([data], Columns.choose(require_target=True)) if isinstance(item, RawDocument)
    ]
    texts = [text for item in documents for text in (item.source, item.target or "")]
    backend = load_tokenizer(tokenizer).backend_tokenizer

    def run(encode: Any) -> int:
        batches = (texts[i : i + 64] for i in range(0, len(texts), 64))
        return sum(len(item.ids) for batch in batches for item in encode(batch, add_special_tokens=False))

    return {
        "encode_batch": lambda: run(backend.encode_batch),
        "encode_batch_fast": lambda: run(backend.encode_batch_fast),
    }


def run_prepare(
    files: Sequence[str], tokenizer: str, watch: Callable[[int], None] = lambda pid: None
) -> dict[str, int]:
    """Run `transpooler prepare`, calling `watch` with its process id meanwhile; returns the counts of its report."""
    with tempfile.TemporaryDirectory() as folder:
        settings = {"output": f"{folder}/out", "sources": {"train": list(files)}, "tokenizer": {"path": tokenizer}}
        settings["clean"] = {"exact_duplicates": False}  # with several copies of the text
        config = Path(folder) / "prepare.yaml"
        config.write_text(json.dumps({"prepare": settings}))
        process = subprocess.Popen([sys.executable, "-m", "transpooler", "prepare", "-q", str(config)])
        while process.poll() is None:
            watch(process.pid)
            time.sleep(0.05)
        if process.returncode:
            sys.exit(process.returncode)
        return json.loads(Path(f"{folder}/out/report.json").read_text())["splits"]["train"]


def sum_resident_mib(pid: int) -> float:
    """The resident memory of a process and of all processes below it, in MiB; 0 where it has ended."""
    try:
        below = psutil.Process(pid).children(recursive=True)
    except psutil.Error:
        return 0.0
    return sum(map(resident_mib, [pid, *(child.pid for child in below)]))


def speed(parsed: argparse.Namespace) -> None:
    """Measure tokens/s of each side, and their ratios."""
    with tempfile.TemporaryDirectory() as folder:
        functions: dict[str, Callable[[], Any]] = {**build_bare(parsed.data, parsed.tokenizer)}
        files = split_lines(NUM_FILES, parsed.data, Path(folder))
        functions["prepare"] = lambda: run_prepare([parsed.data], parsed.tokenizer)
        functions[f"prepare, {NUM_FILES} files"] = lambda: run_prepare(files, parsed.tokenizer)
        counts = run_prepare([parsed.data], parsed.tokenizer)
        tokens = counts["source_tokens"] + counts["target_tokens"]
        cpu_s: dict[str, list[float]] = {name: [] for name in functions}
        timings = measure(
            {name: functools.partial(note_cpu, function, cpu_s[name]) for name, function in functions.items()},
            repeats=parsed.repeats,
            warm_up=0,
        )
    rows = [
        {
            "what": name,
            "documents": counts["documents"],
            "tokens": tokens,
            **timing.columns("s"),
            "tokens_per_s": round(tokens / timing.median_s),
            "over_encode_batch": timings["encode_batch"].median_s / timing.median_s,
            "over_encode_batch_fast": timings["encode_batch_fast"].median_s / timing.median_s,
            "cpu_s": statistics.median(cpu_s[name]),
            "cpu_over_encode_batch": statistics.median(cpu_s["encode_batch"]) / statistics.median(cpu_s[name]),
        }
        for name, timing in timings.items()
    ]
    finish("data_prepare_speed", rows)


def note_cpu(function: Callable[[], Any], cpu_s: list[float]) -> None:
    """Call the function; append the CPU seconds of this process and of those that it waited for to `cpu_s`."""
    before = sum(os.times()[:4])
    function()
    cpu_s.append(sum(os.times()[:4]) - before)


def memory(parsed: argparse.Namespace) -> None:
    """Measure peak memory with the text once and `--copies` times over."""
    rows = []
    for copies in (1, *parsed.copies):
        with tempfile.TemporaryDirectory() as folder:
            files = [f"{folder}/{i:03d}-{Path(parsed.data).name}" for i in range(copies)]
            for file in files:
                Path(file).symlink_to(Path(parsed.data).resolve())
            seen: list[float] = []

            def watch(pid: int, seen: list[float] = seen) -> None:
                seen.append(sum_resident_mib(pid))

            counts = run_prepare(files, parsed.tokenizer, watch)
        tokens = counts["source_tokens"] + counts["target_tokens"]
        rows.append({"copies": copies, "documents": counts["documents"], "tokens": tokens, "peak_mib": max(seen)})
    finish("data_prepare_memory", rows)


def split_lines(number: int, data: str, folder: Path) -> list[str]:
    """Distribute the lines of a JSON Lines file over `number` files; returns their paths."""
    with gzip.open(data) if data.endswith(".gz") else open(data, "rb") as file:
        lines = file.readlines()
    files = [folder / f"{i:03d}.jsonl" for i in range(number)]
    for i, path in enumerate(files):
        path.write_bytes(b"".join(lines[i * len(lines) // number : (i + 1) * len(lines) // number]))
    return [str(path) for path in files]


def finish(name: str, rows: list[dict[str, Any]]) -> None:
    for row in rows:
        print(row)
    print(write_results(name, rows, __doc__.split("\n\n", 2)[2]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("speed", "memory"))
    parser.add_argument("--data", required=True, help="JSON Lines, plain or .gz")
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--copies", type=int, nargs="+", default=[10])
    parsed = parser.parse_args()
    speed(parsed) if parsed.what == "speed" else memory(parsed)


if __name__ == "__main__":
    main()
