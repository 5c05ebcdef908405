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

from transpooler.benchmarks.harness import MIB, measure, write_results

NUM_FILES = 64


def bare(data: str, tokenizer: str) -> dict[str, Callable[[], int]]:
    """name -> tokenize everything, 64 texts at a time; returns the number of tokens."""
    from transpooler.data_pipeline.sources.documents import RawDocument, read_documents
    from transpooler.data_pipeline.tokenizer import load_tokenizer

    documents = [item for item in read_documents([data], None, None, True) if isinstance(item, RawDocument)]
    texts = [text for item in documents for text in (item.source, item.target or "")]
    backend = load_tokenizer(tokenizer).backend_tokenizer

    def run(encode: Any) -> int:
        batches = (texts[i : i + 64] for i in range(0, len(texts), 64))
        return sum(len(item.ids) for batch in batches for item in encode(batch, add_special_tokens=False))

    return {
        "encode_batch": lambda: run(backend.encode_batch),
        "encode_batch_fast": lambda: run(backend.encode_batch_fast),
    }


def prepared(files: Sequence[str], tokenizer: str, watch: Callable[[int], None] = lambda pid: None) -> dict[str, int]:
    """The report's counts of one preparation; `watch` is called with its process id while it runs."""
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


def resident_bytes(pid: int) -> int:
    """Of a process and all processes that it started; 0 if it has ended."""
    try:
        own = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return 0
    return own + sum(resident_bytes(int(child)) for child in children)


def speed(parsed: argparse.Namespace) -> None:
    """Tokens/s of each side, and their ratios."""
    with tempfile.TemporaryDirectory() as folder:
        functions: dict[str, Callable[[], Any]] = {**bare(parsed.data, parsed.tokenizer)}
        files = split_in(NUM_FILES, parsed.data, Path(folder))
        functions["prepare"] = lambda: prepared([parsed.data], parsed.tokenizer)
        functions[f"prepare, {NUM_FILES} files"] = lambda: prepared(files, parsed.tokenizer)
        counts = prepared([parsed.data], parsed.tokenizer)
        tokens = counts["source_tokens"] + counts["target_tokens"]
        cpu_s: dict[str, list[float]] = {name: [] for name in functions}
        timings = measure(
            {name: functools.partial(noting_cpu, function, cpu_s[name]) for name, function in functions.items()},
            repeats=parsed.repeats,
            warm_up=0,
        )
    rows = [
        {
            "what": name,
            "documents": counts["documents"],
            "tokens": tokens,
            "median_s": timing.median_s,
            "low_s": timing.low_s,
            "high_s": timing.high_s,
            "tokens_per_s": round(tokens / timing.median_s),
            "over_encode_batch": timings["encode_batch"].median_s / timing.median_s,
            "over_encode_batch_fast": timings["encode_batch_fast"].median_s / timing.median_s,
            "cpu_s": statistics.median(cpu_s[name]),
            "cpu_over_encode_batch": statistics.median(cpu_s["encode_batch"]) / statistics.median(cpu_s[name]),
        }
        for name, timing in timings.items()
    ]
    finish("data_prepare_speed", rows)


def noting_cpu(function: Callable[[], Any], cpu_s: list[float]) -> None:
    """Call the function, and note the CPU seconds of this process and of those that it waited for."""
    before = sum(os.times()[:4])
    function()
    cpu_s.append(sum(os.times()[:4]) - before)


def memory(parsed: argparse.Namespace) -> None:
    """Peak memory with the text once and `--copies` times over."""
    rows = []
    for copies in (1, *parsed.copies):
        with tempfile.TemporaryDirectory() as folder:
            files = [f"{folder}/{i:03d}-{Path(parsed.data).name}" for i in range(copies)]
            for file in files:
                Path(file).symlink_to(Path(parsed.data).resolve())
            seen: list[int] = []

            def watch(pid: int, seen: list[int] = seen) -> None:
                seen.append(resident_bytes(pid))

            counts = prepared(files, parsed.tokenizer, watch)
        tokens = counts["source_tokens"] + counts["target_tokens"]
        rows.append({"copies": copies, "documents": counts["documents"], "tokens": tokens, "peak_mib": max(seen) / MIB})
    finish("data_prepare_memory", rows)


def split_in(number: int, data: str, folder: Path) -> list[str]:
    """The lines of a JSON Lines file in `number` files."""
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
