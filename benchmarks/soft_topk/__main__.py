"""`python -m transpooler.benchmarks.soft_topk speed | figures`."""

import argparse
import time
from pathlib import Path

import torch

from transpooler.benchmarks.harness import RESULTS, markdown, write_results
from transpooler.benchmarks.soft_topk.figures import OVER_K, OVER_N, figure_rows, plot
from transpooler.benchmarks.soft_topk.speed import Case, speed_rows

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
CPU_GOALS = """
Goals (2 cores): float32 forward at most 1.2 x copy_ and 15 times faster than the steps; forward + backward at most 3.5
x copy_ and 16 times faster; bfloat16 forward at most 1.6 x copy_; saved at most 2 %; peak at most 1.1.

median_ms, low_ms, high_ms: median and quartiles of one call. x_copy: multiples of one copy_ of the embeddings into a
warm buffer, in turns with the rest. steps: the paper's algorithm in tensor operations. reference: the same, pair by
pair in Python (the tests' oracle). cpp, torch: Successive Halving; below them the other operators, and noise: what
exploration adds to one in training. saved_share: bytes kept for backward beyond the inputs, as a share of the
embeddings. peak: memory at its highest, as multiples of embeddings + their gradient.
"""
FIGURES_NOTE = """
Embeddings float32, 32 wide; forward alone. cosine: mean over the true top k of the best cosine with any output row.
published: logs of arXiv 2010.15552; their times are of another machine (a GPU, batch 16).
"""
GPU_GOALS = """
Goals (H100): bfloat16 forward at most 2 x copy_ in time, at least 40 times faster than the steps.
"""


def main() -> None:
    """Parse, measure, print, write."""
    parser = argparse.ArgumentParser(prog="python -m transpooler.benchmarks.soft_topk", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    speed = commands.add_parser("speed", help="time and memory beside copy_")
    speed.add_argument("--shape", type=int, nargs=4, metavar=("B", "N", "K", "D"), help="default: the goals' sizes")
    speed.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"], choices=DTYPES)
    speed.add_argument("--no-reference", action="store_true", help="leave out the slow oracle")
    figures = commands.add_parser("figures", help="time and quality over n and k, beside the published numbers")
    figures.add_argument("--batch", type=int, help="documents (default: 4 on CPU, 16 on a GPU, as published)")
    for command, repeats in ((speed, 20), (figures, 5)):
        command.add_argument(
            "--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"]
        )
        command.add_argument("--repeats", type=int, default=repeats, help="calls of each function that count")
        command.add_argument(
            "--clock",
            default="wall",
            choices=["wall", "cpu"],
            help="cpu: CPU seconds of one thread, for shared machines",
        )
        command.add_argument("--output", type=Path, default=RESULTS, help="folder of the result files")
    options = parser.parse_args()
    if options.clock == "cpu":
        torch.set_num_threads(1)
    run_speed(options) if options.command == "speed" else run_figures(options)


def run_speed(options: argparse.Namespace) -> None:
    """The goals' table."""
    on_gpu = options.device == "cuda"
    batch, num_tokens, k, dim = options.shape or ((16 if on_gpu else 4), 8192, 512, 768)
    backends = ["triton", "torch"] if on_gpu else ["cpp", "torch"]
    rows = []
    for name in options.dtypes:
        case = Case(batch=batch, num_tokens=num_tokens, k=k, dim=dim, dtype=DTYPES[name], device=options.device)
        slow = not options.no_reference and not on_gpu and name == "float32"
        rows += speed_rows(case, backends, options.repeats, slow, CLOCKS[options.clock])
    print(markdown(rows))
    notes = (
        f"(B, N, k, D) = {(batch, num_tokens, k, dim)}; clock: {options.clock}.\n"
        + (GPU_GOALS if on_gpu else "")
        + CPU_GOALS
    )
    for path in write_results(f"soft_topk_speed_{options.device}{_suffix(options)}", rows, notes, options.output):
        print(f"wrote {path}")


def _suffix(options: argparse.Namespace) -> str:
    return "_one_thread" if options.clock == "cpu" else ""


def run_figures(options: argparse.Namespace) -> None:
    """Both figures in one picture, and the rows behind it."""
    batch = options.batch or (16 if options.device == "cuda" else 4)
    rows = figure_rows(batch, options.device, options.repeats, sorted({*OVER_N, *OVER_K}), CLOCKS[options.clock])
    print(markdown(rows))
    name = f"soft_topk_figures_{options.device}{_suffix(options)}"
    options.output.mkdir(parents=True, exist_ok=True)
    plot(rows, options.output / f"{name}.png")
    for path in [*write_results(name, rows, f"![]({name}.png)\n{FIGURES_NOTE}", options.output)]:
        print(f"wrote {path}")


if __name__ == "__main__":
    main()
