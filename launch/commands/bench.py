"""Compare architectures: what they cost (speed), and what they learn from the same data (quality).

examples:
  transpooler bench speed --lengths 2k,8k
  transpooler bench speed --device cuda --batch-size 8
  transpooler bench quality studies/cpu --data papers/
"""

import argparse
import os
from pathlib import Path

from transpooler.common import UserError, split_list
from transpooler.launch.arguments import add_command, positive

LENGTHS = "2k,4k,8k,16k,32k"
SPEED = """\
Measure training, encoding and beam search of every architecture at every length, each in a process of its own;
started again, it goes on with what is missing.

examples:
  transpooler bench speed
  transpooler bench speed --architectures deep_blockwise,deep_pyramidion --lengths 8k --repeats 3
  transpooler bench speed --device cuda --batch-size 8 --output bench/h100"""
QUALITY = """\
Train the arms of a study on the same documents under the same budget, evaluate and compare them; started again, it
goes on where it was.

examples:
  transpooler bench quality studies/needles
  transpooler bench quality studies/cpu --data papers/
  transpooler bench quality my_study.yaml --data papers/ --output bench/mine"""


def add(parser: argparse.ArgumentParser) -> None:
    """Its arguments."""
    kinds = parser.add_subparsers(dest="bench", required=True, metavar="KIND", title="kinds")
    _add_speed(add_command(kinds, "speed", SPEED))
    _add_quality(add_command(kinds, "quality", QUALITY))


def run(parsed: argparse.Namespace) -> int | None:
    """`transpooler bench speed` or `quality`."""
    if parsed.bench == "quality":
        return _quality(parsed)
    _speed(parsed)
    return None


def _add_speed(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--architectures", metavar="A,B", help="(default all; an unknown name lists them)")
    parser.add_argument("--lengths", default=LENGTHS, metavar="N,N", help=f"input tokens (default {LENGTHS})")
    parser.add_argument("--phases", default="train,infer", metavar="P,P", help="train, infer (default both)")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="(default cuda where there is one)")
    parser.add_argument("--precision", choices=("fp32", "bf16"), help="(default bf16 on cuda, fp32 on cpu)")
    parser.add_argument("--threads", type=positive, metavar="N", help="CPU threads (default all cores)")
    parser.add_argument(
        "--clock",
        choices=("wall", "process"),
        default="wall",
        help="process: CPU seconds instead of wall-clock time, for CPUs that others use too; take --threads 1",
    )
    parser.add_argument("--batch-size", type=positive, default=1, metavar="N", help="documents (default 1)")
    parser.add_argument("--target-tokens", type=positive, default=128, metavar="N", help="written ones (default 128)")
    parser.add_argument("--beams", type=positive, default=4, metavar="N", help="(default 4)")
    parser.add_argument("--repeats", type=positive, default=5, metavar="N", help="measured runs of a cell (default 5)")
    parser.add_argument("--time-limit", type=positive, default=600, metavar="S", help="of a cell (default 600 s)")
    parser.add_argument(
        "--memory-limit",
        type=positive,
        metavar="GIB",
        help="of a cell's process on cpu (default 80 %% of what is free)",
    )
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="such as model.norm=pre")
    parser.add_argument(
        "--output", type=Path, default=Path("bench/speed"), metavar="FOLDER", help="(default bench/speed)"
    )


def _speed(parsed: argparse.Namespace) -> None:
    import psutil

    from transpooler.benchmarks.speed.architectures import ENTRIES
    from transpooler.benchmarks.speed.bench import bench_speed
    from transpooler.benchmarks.speed.settings import Limits, Settings, parse_lengths, parse_phases
    from transpooler.trainer.weights.models import default_device

    device = parsed.device or default_device()
    if device == "cuda" and parsed.clock == "process":
        raise UserError("--clock process: knows nothing of the GPU's time; use wall with --device cuda")
    settings = Settings(
        device=device,
        precision=parsed.precision or ("bf16" if device == "cuda" else "fp32"),
        threads=parsed.threads or len(os.sched_getaffinity(0)),
        clock=parsed.clock,
        batch_size=parsed.batch_size,
        target_tokens=parsed.target_tokens,
        num_beams=parsed.beams,
        overrides=tuple(parsed.set),
    )
    free_gib = psutil.virtual_memory().available / 2**30
    memory_limit_gib = parsed.memory_limit or (0.8 * free_gib if device == "cpu" else 0.0)
    limits = Limits(repeats=parsed.repeats, time_limit_s=parsed.time_limit, memory_limit_gib=memory_limit_gib)
    names = split_list(parsed.architectures) if parsed.architectures else list(ENTRIES)
    bench_speed(names, parse_lengths(parsed.lengths), settings, limits, parsed.output, parse_phases(parsed.phases))


def _add_quality(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("study", metavar="STUDY", help="a YAML file, or one of ours by name; see docs/benchmarks.md")
    parser.add_argument(
        "--data",
        type=Path,
        metavar="FILE|FOLDER",
        help="a .jsonl or .jsonl.gz file of article/abstract pairs (split 80/10/10), or a folder with train, "
        "validation and test files (default: what the study makes)",
    )
    parser.add_argument(
        "--shards", type=Path, metavar="FOLDER", help="shards that are prepared already, instead of --data"
    )
    parser.add_argument("--arms", metavar="A,B", help="train only these arms of the study")
    parser.add_argument("--seeds", metavar="N,N", help="train these seeds instead of the study's")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="(default bench/NAME of the study)")


def _quality(parsed: argparse.Namespace) -> int | None:
    from transpooler.benchmarks.quality.bench import bench_quality
    from transpooler.benchmarks.quality.study import TASK_NAMES, load_study
    from transpooler.launch.demo.corpus import study_sources

    if parsed.data is not None and parsed.shards is not None:
        raise UserError("--data and --shards: give one of them")
    study = load_study(parsed.study, arms=parsed.arms, seeds=parsed.seeds)
    output = parsed.output or Path("bench") / study.name
    if parsed.data is not None and study.corpus not in (None, "needles_in_text", *TASK_NAMES):
        raise UserError(f"--data: {parsed.study} makes its own documents (corpus: {study.corpus}); leave --data out")

    def sources() -> dict[str, Path]:
        return study_sources(study, parsed.data, output / "corpus")

    made = None if parsed.shards else sources
    return bench_quality(study, sources=made, shards=parsed.shards, output=output, quiet=parsed.quiet)
