"""The two figures of the operator paper, time and approximation quality over n and k, for ours and the baselines.

Quality as in the published log (arXiv 2010.15552): embeddings uniform in [-1, 1]^32, scores uniform in [0, 1]; for each
of the true top-k embeddings the best cosine with any output row, averaged. `hard` is exact: 1 by definition.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from transpooler.benchmarks.harness import measure, save_figure
from transpooler.benchmarks.soft_topk.stepwise import stepwise_soft_topk
from transpooler.model.ops import baselines
from transpooler.model.ops.soft_topk import soft_topk

DIM = 32
OVER_N = [(n, 512) for n in (1024, 2048, 4096, 8192, 16384)]
OVER_K = [(8192, k) for k in (128, 256, 512, 1024, 2048)]
PUBLISHED_COSINE = {
    ("successive_halving", 8192, 512): 0.971,
    ("successive_halving", 2048, 512): 0.986,
    ("successive_halving", 8192, 2048): 0.987,
    ("successive_halving", 8192, 128): 0.924,
    ("successive_halving", 16384, 512): 0.955,
    ("iterative_softmax", 8192, 512): 0.062,
}
PUBLISHED_MS = {("successive_halving", 8192, 512): 48.0}
"""On the authors' GPU, batch 16."""
Pool = Callable[[Tensor, Tensor, int], Tensor]
OPERATORS: dict[str, Pool] = {
    "successive_halving": lambda e, s, k: soft_topk(e, s, k).embeddings,
    "successive_halving, step by step": lambda e, s, k: stepwise_soft_topk(e, s, k)[0],
    "iterative_softmax": lambda e, s, k: baselines.iterative_softmax(e, s, k).embeddings,
    "hard": lambda e, s, k: baselines.hard(e, s, k).embeddings,
    "random": lambda e, s, k: baselines.random(e, s, k, training=True).embeddings,
    "strided_mean": lambda e, s, k: baselines.strided_mean(e, s, k).embeddings,
}


def cosine_to_top_k(pooled_BKD: Tensor, embeddings_BND: Tensor, scores_BN: Tensor, k: int) -> float:
    """Mean over the true top-k rows of the best cosine with any pooled row."""
    best = scores_BN.topk(k, dim=1).indices
    targets_BKD = embeddings_BND.gather(1, best[..., None].expand(-1, -1, embeddings_BND.shape[-1]))
    found = normalize(targets_BKD, dim=-1) @ normalize(pooled_BKD, dim=-1).transpose(1, 2)
    return found.max(dim=2).values.mean().item()


def figure_rows(
    batch: int, device: str, repeats: int, points: list[tuple[int, int]], clock: Callable[[], float]
) -> list[dict[str, Any]]:
    """One row for each operator and point (n, k): forward time, quality, and the published numbers where known."""
    rows = []
    for n, k in points:
        torch.manual_seed(n + k)
        embeddings = torch.rand(batch, n, DIM, device=device) * 2 - 1
        scores = torch.rand(batch, n, device=device).clamp(min=1e-6)
        with torch.no_grad():
            calls = {
                name: lambda pool=pool, e=embeddings, s=scores, k=k: pool(e, s, k) for name, pool in OPERATORS.items()
            }
            times = measure(calls, device=device, repeats=repeats, warm_up=1, clock=clock)
            for name, call in calls.items():
                quality = cosine_to_top_k(call(), embeddings, scores, k)
                rows.append(
                    {
                        "operator": name,
                        "n": n,
                        "k": k,
                        "batch": batch,
                        **times[name].columns("ms"),
                        "published_ms": PUBLISHED_MS.get((name, n, k), ""),
                        "cosine": round(quality, 4),
                        "published_cosine": PUBLISHED_COSINE.get((name, n, k), ""),
                    }
                )
    return rows


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Four panels: time and quality, over n at k = 512 and over k at n = 8192."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 2, figsize=(11, 7.5), sharex="col", sharey="row")
    for column, (points, axis_name) in enumerate(((OVER_N, "n"), (OVER_K, "k"))):
        for name in OPERATORS:
            shown = [row for row in rows if row["operator"] == name and (row["n"], row["k"]) in points]
            x = [row[axis_name] for row in shown]
            axes[0, column].plot(x, [row["median_ms"] for row in shown], marker="o", label=name)
            axes[1, column].plot(x, [row["cosine"] for row in shown], marker="o", label=name)
        published = [(dict(zip("nk", point[1:], strict=True))[axis_name], value)
                     for point, value in PUBLISHED_COSINE.items() if point[1:] in points]  # fmt: skip
        axes[1, column].scatter(*zip(*published, strict=True), marker="x", color="black", zorder=3, label="published")
        axes[0, column].set(xscale="log", yscale="log", title=f"k = {OVER_N[0][1]}" if column == 0 else "n = 8192")
        axes[1, column].set(xscale="log", xlabel=axis_name, xticks=[point[column] for point in points])
        axes[1, column].set_xticklabels([str(point[column]) for point in points])
        axes[1, column].minorticks_off()
    axes[0, 0].set_ylabel("forward, ms")
    axes[1, 0].set_ylabel("cosine to the true top k")
    axes[0, 0].legend(fontsize=8, framealpha=0.5)
    axes[1, 1].legend(*(part[-1:] for part in axes[1, 1].get_legend_handles_labels()), fontsize=8, loc="center right")
    figure.tight_layout()
    save_figure(figure, path)
