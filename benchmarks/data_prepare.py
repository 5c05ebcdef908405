"""Speed and memory of `transpooler prepare`: tokens/s beside bare `tokenizers.encode_batch` on the same text.

    python -m benchmarks.data_prepare --data papers.jsonl.gz --tokenizer FOLDER_OR_JSON [--copies 10]

Both use all cores; `prepare` also reads, cleans, hashes and writes. --copies N measures the memory of N times the text.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

_PREPARE = """
import json, resource, sys, time
from data_pipeline.config import *
from data_pipeline.prepare import prepare
if __name__ == "__main__":
    files, tokenizer, output, clean = json.loads(sys.argv[1])
    start = time.perf_counter()
    report = prepare(PrepareConfig(output=output, sources=SourcesConfig(train=tuple(files)),
                     tokenizer=TokenizerConfig(path=tokenizer), clean=CleanConfig(**clean)))
    seconds = time.perf_counter() - start
    split = report["splits"]["train"]
    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) / 1024
    print(json.dumps({"seconds": seconds, "tokens": split["source_tokens"] + split["target_tokens"],
                      "peak_mib_of_a_process": peak}))
"""


def bare(data: str, tokenizer: str) -> dict:
    """Tokens/s of encode_batch, 64 documents at a time, all cores; reading is not counted."""
    from data_pipeline.readers import RawDocument, read_documents
    from data_pipeline.tokenizer import load_tokenizer

    documents = [item for item in read_documents([data], None, None, True) if isinstance(item, RawDocument)]
    texts = [text for item in documents for text in (item.source, item.target or "")]
    backend = load_tokenizer(tokenizer).backend_tokenizer
    backend.encode_batch(texts[:16])
    start, tokens = time.perf_counter(), 0
    for i in range(0, len(texts), 64):
        tokens += sum(len(item.ids) for item in backend.encode_batch(texts[i : i + 64], add_special_tokens=False))
    return {"seconds": time.perf_counter() - start, "tokens": tokens}


def prepared(files: list[str], tokenizer: str, clean: dict) -> dict:
    """Seconds, tokens and peak memory of one preparation in a fresh process."""
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "run.py"
        script.write_text(_PREPARE)
        arguments = json.dumps([files, tokenizer, f"{folder}/out", clean])
        environment = {**os.environ, "PYTHONPATH": os.getcwd()}
        done = subprocess.run(
            [sys.executable, str(script), arguments], env=environment, stdout=subprocess.PIPE, check=True
        )
        return json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True)
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--copies", type=int, default=1)
    parsed = parser.parse_args()
    duplicates_stay = {"exact_duplicates": False} if parsed.copies > 1 else {}
    with tempfile.TemporaryDirectory() as folder:
        files = [parsed.data]
        for i in range(parsed.copies - 1):
            link = Path(folder) / f"copy{i}-{Path(parsed.data).name}"
            link.symlink_to(parsed.data)
            files.append(str(link))
        result = {"prepare": prepared(files, parsed.tokenizer, duplicates_stay)}
        if parsed.copies == 1:
            result["bare"] = bare(parsed.data, parsed.tokenizer)
            speeds = {name: item["tokens"] / item["seconds"] for name, item in result.items()}
            result["ratio"] = {"prepare/bare": speeds["prepare"] / speeds["bare"]}
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    packages = {name: version(name) for name in ("tokenizers", "numpy", "webdataset")}
    about = {"date": time.strftime("%Y-%m-%d"), "commit": commit, "cpu": platform.machine(), "cores": os.cpu_count()}
    print(
        json.dumps(
            {**about, "copies": parsed.copies, "python": platform.python_version(), **packages, **result}, indent=2
        )
    )


if __name__ == "__main__":
    main()
