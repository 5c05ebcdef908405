"""The dataset card beside the shards: README.md, and a chart of the lengths as SVG."""

from pathlib import Path
from typing import Any

from transpooler.common import atomic_write
from transpooler.data_pipeline.config import PrepareConfig

PICTURE = "lengths.svg"
_BAR, _HEIGHT, _PANEL_GAP, _LEFT = 34, 90, 60, 10


def write_card(folder: Path, config: PrepareConfig, indexes: dict[str, dict[str, Any]], tokenizer: dict) -> None:
    """Write README.md (counts, drops, lengths, licence, how to read) and lengths.svg."""
    with atomic_write(folder / PICTURE) as file:
        file.write(draw_lengths(indexes))
    with atomic_write(folder / "README.md") as file:
        file.write(_compose_card(config, indexes, tokenizer))


def draw_lengths(indexes: dict[str, dict[str, Any]]) -> str:
    """Draw histograms of document and summary lengths, one panel each, as SVG."""
    panels = [
        (f"{split}: {side} tokens", index[f"{side}_lengths"])
        for split, index in indexes.items()
        for side in ("source", "target")
        if index[f"{side}_lengths"]["count"]
    ]
    body, top = [], 30
    width = 2 * _LEFT + _BAR * max((len(_trim_bins(lengths)) for _, lengths in panels), default=1)
    for title, lengths in panels:
        bins = _trim_bins(lengths)
        highest = max(count for _, count in bins)
        body.append(f'<text x="{_LEFT}" y="{top - 8}" font-weight="bold">{title} ({lengths["count"]} documents)</text>')
        for i, (edge, count) in enumerate(bins):
            height, x = round(_HEIGHT * 0.85 * count / highest, 1), _LEFT + i * _BAR
            bar_top = top + _HEIGHT - height
            body.append(f'<rect x="{x + 1}" y="{bar_top}" width="{_BAR - 2}" height="{height}" fill="#4878a8"/>')
            body.append(f'<text x="{x + _BAR / 2}" y="{bar_top - 2}" text-anchor="middle" font-size="8">{count}</text>')
            label = f"{edge // 1024}k" if edge >= 1024 else str(edge)
            body.append(f'<text x="{x}" y="{top + _HEIGHT + 12}" font-size="9" text-anchor="middle">{label}</text>')
        top += _HEIGHT + _PANEL_GAP
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{max(width, 340)}" height="{top}" '
        f'font-family="sans-serif" font-size="12"><rect width="100%" height="100%" fill="white"/>\n'
        + "\n".join(body)
        + "\n</svg>\n"
    )


def _trim_bins(lengths: dict[str, Any]) -> list[tuple[int, int]]:
    """Return (lower edge, count) from the first to the last bin that is not empty."""
    bins = list(zip(lengths["histogram_edges"], lengths["histogram"], strict=True))
    filled = [i for i, (_, count) in enumerate(bins) if count]
    return bins[filled[0] : filled[-1] + 1]


def _compose_card(config: PrepareConfig, indexes: dict[str, dict[str, Any]], tokenizer: dict[str, Any]) -> str:
    total = sum(index["num_documents"] for index in indexes.values())
    sizes = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
    size = next((name for limit, name in sizes if total < limit), "n>1M")
    licence = config.license or "unknown"
    lines = ["---", f"license: {licence}", f"size_categories: [{size}]", "tags: [webdataset, transpooler]", "configs:"]
    lines += ["- config_name: default", "  data_files:"]
    for split in indexes:
        lines += [f"  - split: {split}", f"    path: {split}/*.tar"]
    lines += ["---", "", "# Tokenized documents", "", f"Written by `transpooler prepare`. Licence: {licence}.", ""]
    lines += ["| split | documents | source tokens | p50 | p99 | target tokens | p50 | shards |"]
    lines += ["|---|---|---|---|---|---|---|---|"]
    for split, index in indexes.items():
        source, target = index["source_lengths"], index["target_lengths"]
        lines.append(
            f"| {split} | {index['num_documents']:,} | {index['num_source_tokens']:,} | {source['p50']:,} | "
            f"{source['p99']:,} | {index['num_target_tokens']:,} | {target.get('p50', 0):,} | {len(index['shards'])} |"
        )
    lines += ["", f"![Lengths in tokens]({PICTURE})", "", "## Left out", ""]
    reasons = sorted({reason for index in indexes.values() for reason in index["dropped"]})
    if reasons:
        lines += [f"| reason | {' | '.join(indexes)} |", "|---" * (len(indexes) + 1) + "|"]
        for reason in reasons:
            counts = (str(index["dropped"].get(reason, 0)) for index in indexes.values())
            lines.append(f"| {reason} | {' | '.join(counts)} |")
    else:
        lines.append("Nothing.")
    lines += ["", "## Tokens", ""]
    lines.append(f"Vocabulary {tokenizer['vocab_size']:,}, fingerprint `{tokenizer['fingerprint']}`: `tokenizer/`.")
    lines += ["", "```python", "import webdataset", ""]
    first = next(iter(indexes))
    lines.append(f'for sample in webdataset.WebDataset("{first}/{first}-000000.tar", shardshuffle=False).decode():')
    lines += ['    sample["__key__"], sample["source.npy"], sample["json"]', "```", ""]
    return "\n".join(lines)
