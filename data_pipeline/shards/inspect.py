"""`transpooler inspect`: describes a folder of shards."""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transpooler.data_pipeline.shards.dataset import ShardDataset
from transpooler.data_pipeline.shards.remote import fetch_tokenizer
from transpooler.data_pipeline.shards.verify import open_shards
from transpooler.data_pipeline.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_BAR_WIDTH = 40
_SHOWN_CHARACTERS = 400


def describe_shards(shards: str | Path, samples: int, seed: int = 0) -> Iterator[str]:
    """Yield lines with each split's counts, drops and histograms of lengths, and `samples` random documents decoded."""
    with open_shards(shards) as output:
        for split in output.splits:
            dataset = output.open(split)
            yield from _describe_split(dataset)
            if samples:
                tokenizer = load_tokenizer(fetch_tokenizer(output.store.location, output.cache))
                dataset.check_tokenizer(tokenizer, output.store.location)
                yield from _decode_samples(dataset, tokenizer, samples, seed)


def _describe_split(dataset: ShardDataset) -> Iterator[str]:
    index = dataset.index
    size = sum(shard["size_bytes"] for shard in index["shards"])
    yield f"{dataset.folder}: {len(dataset):,} documents in {len(index['shards'])} shards, {size / 2**20:.1f} MiB"
    counts = f"{index['num_source_tokens']:,} source, {index['num_target_tokens']:,} target"
    yield f"  tokens: {counts}, as {index['token_dtype']}"
    yield f"  tokenizer: {index['vocab_size']:,} entries, {index['tokenizer_fingerprint'][:16]}"
    for reason, count in index["dropped"].items():
        yield f"  dropped: {reason} {count:,}"
    for item in index.get("sources", ())[:20]:
        yield f"  from {item['file']}: {item['num_documents']:,} of {item['num_records']:,} records"
    for side in ("source", "target"):
        yield from _draw_histogram(side, index.get(f"{side}_lengths", {"count": 0}))


def _draw_histogram(side: str, lengths: dict[str, Any]) -> Iterator[str]:
    if not lengths["count"]:
        return
    quantiles = ", ".join(f"{name} {lengths[name]:,}" for name in ("min", "p10", "p50", "p90", "p99", "max"))
    yield f"  {side} tokens: {quantiles}"
    highest = max(lengths["histogram"])
    for edge, count in zip(lengths["histogram_edges"], lengths["histogram"], strict=True):
        if count:
            yield f"  {edge:>10,}+ {'#' * max(1, round(_BAR_WIDTH * count / highest))} {count:,}"


def _decode_samples(
    dataset: ShardDataset, tokenizer: "PreTrainedTokenizerFast", samples: int, seed: int
) -> Iterator[str]:
    for number in sorted(random.Random(seed).sample(range(len(dataset)), min(samples, len(dataset)))):
        document = dataset.read(number)
        yield f"  {document.key} ({document.meta['id']}, {document.meta['file']}:{document.meta['line']})"
        for name, tokens in (("source", document.source), ("target", document.target)):
            if tokens is not None:
                text = " ".join(str(tokenizer.decode(tokens[: _SHOWN_CHARACTERS // 2])).split())
                yield f"    {name}, {len(tokens):,} tokens: {text[:_SHOWN_CHARACTERS]}"
