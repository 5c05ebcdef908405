"""Reading documents: our random access, in training order, beside plain `webdataset`, sequentially, on the same tars.

    python -m transpooler.benchmarks.data_loading --shards FOLDER --split train

Both decode everything (token arrays and JSON) in one process; taking turns, files in the page cache. Whole loader steps
(objective, padding to tensors, one thread ahead or worker processes) are measured beside them.
"""

import argparse
import itertools
from collections.abc import Callable
from pathlib import Path

import webdataset

from transpooler.benchmarks.harness import measure, write_results
from transpooler.data_pipeline.config import DataConfig
from transpooler.data_pipeline.loading.loader import Loader
from transpooler.data_pipeline.objectives import OBJECTIVES
from transpooler.data_pipeline.order.corpus import batch_order, open_corpora

FOOTNOTE = """
Processes are started anew in every run here. On two cores they pay for denoise and gap sentences alone; a thread is
the default.
"""


def build_readers(config: DataConfig) -> dict[str, Callable[[], int]]:
    """Name -> a function that reads and decodes all documents once and returns their number."""
    corpora = open_corpora(config, config.train_split)
    dataset, order = corpora[0].dataset, batch_order(config, corpora, 0)
    urls = [str(path) for path in sorted((Path(config.shards) / config.train_split).glob("*.tar"))]

    def plain() -> int:
        return sum(1 for _ in webdataset.WebDataset(urls, shardshuffle=False).decode())

    def in_training_order() -> int:
        steps = range(order.steps_per_epoch)
        numbers = [int(number) for step in steps for chunk in order.batch(step) for number in chunk.numbers]
        return len([dataset.read(number).key for number in numbers])

    def in_corpus_order() -> int:
        return len([dataset.read(number).key for number in range(len(dataset))])

    return {"webdataset": plain, "ours, training order": in_training_order, "ours, corpus order": in_corpus_order}


def build_epoch(config: DataConfig) -> Callable[[], int]:
    """Make a loader, and a function that takes all steps of an epoch from it, as training does."""
    loader = Loader(config, split=config.train_split, seed=0, rank=0, world_size=1, micro_batch_size=8)

    def run() -> int:
        stream = loader.steps(0)
        count = sum(len(step.keys) for step in itertools.islice(stream, loader.steps_per_epoch))
        stream.close()
        return count

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shards", required=True)
    parser.add_argument("--split", default="train")
    parser.add_argument("--repeats", type=int, default=9)
    parsed = parser.parse_args()
    config = DataConfig(shards=parsed.shards, train_split=parsed.split, batch_tokens=65_536, max_source_tokens=8192)
    functions = build_readers(config)
    for objective, workers in itertools.product(OBJECTIVES, (0, 2)):
        name = f"whole steps, {objective}, {f'{workers} processes' if workers else 'a thread'}"
        settings = {"objective": objective, "workers": workers}
        functions[name] = build_epoch(DataConfig(**{**vars(config), **settings}))
    counts = {name: function() for name, function in functions.items()}
    assert len(set(counts.values())) == 1, counts
    timings = measure(functions, repeats=parsed.repeats, warm_up=1)
    floor = timings["webdataset"].median_s
    tokens = int(open_corpora(config, parsed.split)[0].dataset.source_lengths.sum())
    rows = [
        {
            "what": name,
            "documents": counts[name],
            "source_tokens": tokens,
            **timing.columns("ms"),
            "documents_per_s": counts[name] / timing.median_s,
            "speed_over_webdataset": floor / timing.median_s,
        }
        for name, timing in timings.items()
    ]
    for row in rows:
        print(row)
    notes = __doc__.split("\n\n", 2)[2] + FOOTNOTE
    print(write_results("data_loading", rows, notes))


if __name__ == "__main__":
    main()
