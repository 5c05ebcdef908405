"""From the finished runs of a study to rows of a table and points of learning curves."""

import json
import math
import statistics
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from transpooler.benchmarks.quality.losses import measure_losses
from transpooler.benchmarks.quality.statistics import Estimate, compare, estimate
from transpooler.benchmarks.quality.study import Study
from transpooler.benchmarks.quality.tasks import score_of
from transpooler.common import read_json
from transpooler.trainer.config import load_config
from transpooler.trainer.evaluation.rouge import dialect_of
from transpooler.trainer.metrics import read_metrics
from transpooler.trainer.run_folder import RunFolder

ROUGE = ("rouge1", "rouge2", "rougeL", "rougeLsum")


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
    """Steps, tokens, minutes and memory of each seed's run."""
    dialects: tuple[str, ...] = ()
    """How the runs' ROUGE was computed; one, unless settings changed in between."""


def read_arm(arm: str, runs: dict[int, Path], study: Study) -> ArmResult:
    """Read the finished and evaluated runs of one arm, one a seed."""
    losses, shuffled, scores, facts = [], [], [], []
    shares: dict[str, list[list[float]]] = {}
    dialects: set[str] = set()
    for run in runs.values():
        config = load_config([RunFolder(run).config])
        measured = measure_losses(run, config)
        tokens_N = measured["target_tokens"]
        losses.append(measured["loss_sum"] / tokens_N)
        shuffled.append(measured["shuffled_loss_sum"] / tokens_N)
        facts.append(_facts(run))
        if not config.data.needs_summaries:
            continue
        folder = RunFolder(run).evaluation(config.evaluation.split)
        rows = [json.loads(line) for line in folder.generated.read_text(encoding="utf-8").splitlines()]
        dialects.add(dialect_of(read_json(folder.metrics)))
        scores.append({name: [row["rouge"][name] for row in rows] for name in ROUGE})
        if study.corpus:
            score = score_of(study.corpus)
            shares.setdefault("facts", []).append([score(row["reference"], row["generated"]) for row in rows])
        elif all("evidence_recall" in row for row in rows):
            shares.setdefault("evidence", []).append([_number(row["evidence_recall"]) for row in rows])
    return ArmResult(
        arm=arm,
        loss_SN=np.array(losses),
        shuffled_SN=np.array(shuffled),
        rouge_SN={name: np.array([score[name] for score in scores]) for name in ROUGE} if scores else {},
        tokens_N=tokens_N,
        shares_SN={name: np.array(values) for name, values in shares.items() if len(values) == len(runs)},
        seeds=tuple(runs),
        facts_S=facts,
        dialects=tuple(sorted(dialects)),
    )


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _facts(run: Path) -> dict[str, float]:
    histories = [[row for row in read_metrics(part) if row["split"] == "train"] for part in list_parts(run)]
    return {
        "steps": sum(history[-1]["step"] for history in histories),
        "source_tokens": sum(history[-1]["source_tokens"] for history in histories),
        "train_minutes": sum(sum_seconds(history)[-1] for history in histories) / 60,
        "peak_memory_mib": max(row["peak_memory_mib"] for history in histories for row in history),
    }


def list_parts(run: Path) -> list[Path]:
    """List the folders of a run in order of time: that of the run whose weights it began with, if any, and its own."""
    start = load_config([RunFolder(run).config]).train.init_from
    beginning = [] if start is None else [run.parent / Path(start).parent.name]
    return [*(folder for folder in beginning if RunFolder(folder).metrics.is_file()), run]


def sum_seconds(history: list[dict[str, Any]]) -> list[float]:
    """Sum up seconds of training at each line of train metrics; evaluating and saving in between count."""
    done, elapsed, times = 0, 0.0, []
    for row in history:
        elapsed += row["step_time_s"] * (row["step"] - done)
        done = row["step"]
        times.append(elapsed)
    return times


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


def read_curves(arm: str, runs: dict[int, Path]) -> list[dict[str, Any]]:
    """Read the learning curves of an arm: held-out loss against step, source tokens and minutes of training."""
    points = []
    for seed, run in runs.items():
        tokens, minutes, steps = 0, 0.0, 0
        for part in list_parts(run):
            rows = read_metrics(part)
            history = [row for row in rows if row["split"] == "train"]
            at = dict(zip([row["step"] for row in history], sum_seconds(history), strict=True))
            seen = {row["step"]: row["source_tokens"] for row in history}
            points += [
                {
                    "arm": arm,
                    "seed": seed,
                    "step": steps + row["step"],
                    "source_tokens": tokens + seen[row["step"]],
                    "minutes": minutes + at[row["step"]] / 60,
                    "loss": row["loss"],
                }
                for row in rows
                if row["split"] == "validation" and row["step"] in at
            ]
            steps += history[-1]["step"]
            tokens += history[-1]["source_tokens"]
            minutes += sum_seconds(history)[-1] / 60
    return points


def _columns(name: str, value: Estimate) -> dict[str, float]:
    found = asdict(value)
    return {name: found["mean"], f"{name}_low": found["low"], f"{name}_high": found["high"]}
