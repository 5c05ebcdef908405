"""From the cells of a study to rows of its tables."""

import statistics
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from transpooler.benchmarks.quality.cells import ROUGE, StudyCell
from transpooler.benchmarks.quality.statistics import Estimate, compare, estimate
from transpooler.benchmarks.quality.study import Study


@dataclass(frozen=True, kw_only=True)
class ArmResult:
    """All seeds of one arm."""

    arm: str
    loss_SN: np.ndarray
    """Loss per target token of each document, in each seed's run."""
    shuffled_SN: np.ndarray
    """The same with another document's source."""
    rouge_SN: dict[str, np.ndarray]
    """F1 in 0..1; empty where the objective writes no summaries."""
    tokens_N: np.ndarray
    shares_SN: dict[str, np.ndarray]
    """facts: share of the planted ones that are asked for, where a study has such; evidence: recall of what the decoder
    could read, where the arm pools (NaN for a document without any)."""
    seeds: tuple[int, ...]
    facts_S: list[dict[str, float]]
    """`StudyCell.numbers` of each seed."""
    dialects: tuple[str, ...] = ()
    """How the runs' ROUGE was computed; one, unless settings changed in between."""


def stack_cells(arm: str, cells: dict[int, StudyCell]) -> ArmResult:
    """Put the cells of one arm together, one a seed."""
    each = list(cells.values())
    tokens_N = np.array(each[0].losses["target_tokens"], dtype=np.float64)
    names = [name for name in each[0].scores if all(name in cell.scores for cell in each)]
    scores_SN = {name: np.array([cell.scores[name] for cell in each], dtype=np.float64) for name in names}
    return ArmResult(
        arm=arm,
        loss_SN=np.array([cell.losses["loss_sum"] for cell in each]) / tokens_N,
        shuffled_SN=np.array([cell.losses["shuffled_loss_sum"] for cell in each]) / tokens_N,
        rouge_SN={name: values_SN for name, values_SN in scores_SN.items() if name in ROUGE},
        tokens_N=tokens_N,
        shares_SN={name: values_SN for name, values_SN in scores_SN.items() if name not in ROUGE},
        seeds=tuple(cells),
        facts_S=[cell.numbers for cell in each],
        dialects=tuple(sorted({cell.dialect for cell in each if cell.dialect})),
    )


def compare_arms(results: list[ArmResult], study: Study) -> list[dict[str, Any]]:
    """One row an arm: numbers, 95 % intervals, and differences to the baseline arm."""
    baseline = next((result for result in results if result.arm == study.baseline), results[0])
    return [_row(result, baseline) for result in results]


def list_seeds(results: list[ArmResult]) -> list[dict[str, Any]]:
    """One row an arm and seed: the same numbers without intervals."""
    return [_seed_row(result, number) for result in results for number in range(len(result.seeds))]


def _seed_row(result: ArmResult, number: int) -> dict[str, Any]:
    weights = result.tokens_N
    loss, shuffled = (
        np.average(values_SN[number], weights=weights) for values_SN in (result.loss_SN, result.shuffled_SN)
    )
    scores = result.rouge_SN | result.shares_SN
    return {
        "arm": result.arm,
        "seed": result.seeds[number],
        **result.facts_S[number],
        **_dialect_column(result),
        "loss": float(loss),
        "reads_its_input": float(shuffled - loss),
        **{name: 100 * float(np.nanmean(values_SN[number])) for name, values_SN in scores.items()},
    }


def _row(result: ArmResult, baseline: ArmResult) -> dict[str, Any]:
    weights, ones = result.tokens_N, np.ones_like(result.tokens_N)
    loss = estimate(result.loss_SN, weights)
    row: dict[str, Any] = {"arm": result.arm, "seeds": len(result.loss_SN), "documents": len(weights)}
    row |= {name: statistics.mean(facts[name] for facts in result.facts_S) for name in result.facts_S[0]}
    row |= _dialect_column(result) | _columns("loss", loss)
    row["reads_its_input"] = estimate(result.shuffled_SN, weights).mean - loss.mean
    for name, values_SN in result.rouge_SN.items():
        row |= _columns(name, estimate(100 * values_SN, ones))
    for name, values_SN in result.shares_SN.items():
        known_N = ~np.isnan(values_SN).any(0)
        row |= _columns(name, estimate(100 * values_SN[:, known_N], ones[known_N]))
    # Paired by seed: over those that both have.
    seeds = [] if result is baseline else [seed for seed in result.seeds if seed in baseline.seeds]
    ours, theirs = ([some.seeds.index(seed) for seed in seeds] for some in (result, baseline))
    if seeds:
        apart = compare(result.loss_SN[ours], baseline.loss_SN[theirs], weights)
        row |= _columns(f"loss_less_{baseline.arm}", apart) | {"loss_verdict": judge(apart, lower_is_better=True)}
    for name in result.rouge_SN if seeds else ():
        apart = compare(100 * result.rouge_SN[name][ours], 100 * baseline.rouge_SN[name][theirs], ones)
        row |= _columns(f"{name}_less_{baseline.arm}", apart) | {f"{name}_verdict": judge(apart)}
    return row


def _dialect_column(result: ArmResult) -> dict[str, str]:
    """How ROUGE was computed, where there is any."""
    return {"rouge_dialect": " and ".join(result.dialects)} if result.dialects else {}


def judge(apart: Estimate, *, lower_is_better: bool = False) -> str:
    """'better' or 'worse' than the baseline if the interval excludes zero, else 'undecided'."""
    if not apart.is_clear:
        return "undecided"
    return "better" if (apart.mean < 0) == lower_is_better else "worse"


def _columns(name: str, value: Estimate) -> dict[str, float]:
    found = asdict(value)
    return {name: found["mean"], f"{name}_low": found["low"], f"{name}_high": found["high"]}
