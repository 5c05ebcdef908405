"""The order of documents: time and memory of the plan of a large corpus, and the padding with and without buckets.

    python -m transpooler.benchmarks.data_order [--documents 10000000] [--shards FOLDER/train ...]

Lengths are synthetic: log-normal with the median and 90th percentile of arXiv articles (6k and 16k tokens), cut at
8,192 and at 16,384. --shards adds the lengths of prepared documents. A batch is a micro batch of at most 65,536 tokens,
padding included, or of 16 documents.
"""

import argparse
import itertools
import time
from pathlib import Path

import numpy as np

from transpooler.benchmarks.harness import MIB, peak_memory_bytes, write_results
from transpooler.data_pipeline.order.mixture import BatchOrder
from transpooler.data_pipeline.order.order import CorpusOrder, Cut

MEDIAN_TOKENS, P90_TOKENS = 6000, 16_000
BUDGET = 65_536
MICRO_BATCHES = 8
CUTS = (8192, 16_384)
STEPS = 200
FOOTNOTE = """
Steps are taken at step 10^9: resuming there costs what resuming at 0 does. Planning needs about 24 bytes a document for
a moment (the sort), the finished plan 4.
"""


def draw_lengths(count: int, longest: int) -> np.ndarray:
    """Draw token counts like those of arXiv articles, cut at `longest`; uint16."""
    sigma = np.log(P90_TOKENS / MEDIAN_TOKENS) / 1.2816
    rng = np.random.default_rng(0)
    lengths = np.empty(count, np.uint16)
    for start in range(0, count, 1_000_000):
        part = rng.lognormal(np.log(MEDIAN_TOKENS), sigma, min(1_000_000, count - start))
        lengths[start : start + len(part)] = np.clip(part, 32, longest)
    return lengths


def measure_padding(lengths: np.ndarray, width: float | None, *, fixed: int | None = None) -> float:
    """Measure the share of padding in an epoch (at most 20,000 chunks of it), each padded to its longest document."""
    order = CorpusOrder(lengths, Cut(documents=fixed, tokens=BUDGET, width=width), seed=0)
    real = padded = 0
    for position in range(min(order.num_chunks, 20_000)):
        chunk = lengths[order.chunk(0, position)]
        real += int(chunk.sum(dtype=np.int64))
        padded += int(chunk.max()) * len(chunk)
    return 1 - real / padded


def measure_plan(lengths: np.ndarray) -> dict[str, float]:
    """Measure the cost of the plan, and of taking steps anywhere in it."""
    started = time.perf_counter()
    order = CorpusOrder(lengths, Cut(tokens=BUDGET, width=0.05), seed=0)
    batches = BatchOrder([order], [1.0], MICRO_BATCHES)
    plan_s = time.perf_counter() - started
    started = time.perf_counter()
    for step in range(STEPS):
        batches.batch(10**9 + step)
    step_ms = 1e3 * (time.perf_counter() - started) / STEPS
    peak = peak_memory_bytes(lambda: CorpusOrder(lengths, Cut(tokens=BUDGET, width=0.05), seed=0))
    return {
        "documents": len(lengths),
        "plan_s": plan_s,
        "plan_bytes_a_document": order.nbytes / len(lengths),
        "peak_mib_while_planning": peak / MIB,
        "peak_bytes_a_document": peak / len(lengths),
        "ms_a_step_anywhere": step_ms,
        "documents_a_step": float(np.mean([sum(len(c.numbers) for c in batches.batch(s)) for s in range(50)])),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--documents", type=int, default=10_000_000)
    parser.add_argument("--shards", type=Path, nargs="*", default=[])
    parsed = parser.parse_args()
    rows: list[dict] = []
    for count in (parsed.documents // 10, parsed.documents):
        rows.append({"what": "plan", **measure_plan(draw_lengths(count, 8192))})
        print(rows[-1], flush=True)
    sources = {f"arXiv-like, cut at {cut}": draw_lengths(200_000, cut) for cut in CUTS}
    for folder in parsed.shards:
        from transpooler.data_pipeline.shards.dataset import ShardDataset

        real = np.minimum(ShardDataset(folder).source_lengths, 65_535).astype(np.uint16)
        sources |= {f"{folder.parent.name}/{folder.name}, cut at {cut}": real.clip(max=cut) for cut in CUTS}
    for (name, lengths), fixed in itertools.product(sources.items(), (None, 16)):
        row = {"what": "padding", "lengths": name, "documents": len(lengths)}
        row["batch"] = f"{BUDGET} tokens" if fixed is None else f"{fixed} documents"
        for width in (None, 0.05, 0.1):
            row[f"padding_share_{'no_buckets' if width is None else f'width_{width}'}"] = measure_padding(
                lengths, width, fixed=fixed
            )
        rows.append(row)
        print(row, flush=True)
    notes = __doc__.split("\n\n", 2)[2] + FOOTNOTE
    print(write_results("data_order", rows, notes))


if __name__ == "__main__":
    main()
