"""One cell, in a process of its own: `python -m transpooler.benchmarks.speed.cell JSON`.

Writes its result as one JSON file.
"""

import contextlib
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from transpooler.benchmarks import harness
from transpooler.benchmarks.speed import architectures
from transpooler.benchmarks.speed.settings import Cell, Limits, Settings, make_result
from transpooler.benchmarks.speed.work import count_flops, measure_reads
from transpooler.common import die_with_parent, write_json

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
CLOCKS = {"wall": time.perf_counter, "process": time.process_time}


def main(text: str) -> None:
    """Measure the cell that the JSON describes."""
    die_with_parent()  # or it would go on, and disturb what is measured next
    request = json.loads(text)
    cell, limits = Cell(**request["cell"]), Limits(**request["limits"])
    settings = Settings(**request["settings"] | {"overrides": tuple(request["settings"]["overrides"])})
    torch.set_num_threads(settings.threads)
    try:
        result = make_result(cell, "ok", **_measure(cell, settings, limits))
    except (RuntimeError, MemoryError) as error:
        if not isinstance(error, torch.OutOfMemoryError | MemoryError) and "can't allocate memory" not in str(error):
            raise
        result = make_result(cell, "out_of_memory", str(error).splitlines()[0])
    write_json(Path(request["output"]), {**result, "environment": harness.environment()})


def _measure(cell: Cell, settings: Settings, limits: Limits) -> dict[str, Any]:
    model: Any = architectures.build(
        cell.architecture,
        length=cell.length,
        target_tokens=settings.target_tokens,
        vocab_size=settings.vocab_size,
        overrides=settings.overrides,
    )
    model = model.to(settings.device, DTYPES[settings.precision])
    batch = architectures.make_inputs(
        model, batch_size=settings.batch_size, length=cell.length, vocab_size=settings.vocab_size
    )
    batch = {name: tensor.to(settings.device) for name, tensor in batch.items()}
    clock = Clock(settings, limits)
    measured = (
        _training(model, batch, settings, clock) if cell.phase == "train" else _inference(model, batch, settings, clock)
    )
    parameters = sum(weight.numel() for weight in model.parameters())
    return {"parameters": parameters, "repeats_asked": limits.repeats, **measured}


class Clock:
    """Repeats a function as often as asked, or until half of the time limit has passed."""

    def __init__(self, settings: Settings, limits: Limits) -> None:
        self.device, self.repeats = settings.device, limits.repeats
        # The clock of a process with many threads, most of them idle, takes a millisecond to read, a tenth of a token.
        alone = settings.clock == "process" and settings.threads == 1
        self.now = time.thread_time if alone else CLOCKS[settings.clock]
        self._deadline = time.perf_counter() + limits.time_limit_s / 2

    def times(self, function: Callable[[], Any], spare_s: float | None = None) -> list[float]:
        """Measure the seconds of each run; without time for a single one, return `spare_s`, measured earlier."""
        measured: list[float] = []
        while (not measured and spare_s is None) or (
            time.perf_counter() < self._deadline and len(measured) < self.repeats
        ):
            measured.append(self.seconds(function))
        return measured or [float(spare_s or 0)]

    def seconds(self, function: Callable[[], Any]) -> float:
        """Measure the seconds of one call."""
        self.wait()
        started = self.now()
        function()
        self.wait()
        return self.now() - started

    def wait(self) -> None:
        """Wait until the GPU has finished its work."""
        if self.device == "cuda":
            torch.cuda.synchronize()


def _training(model: Any, batch: dict[str, Any], settings: Settings, clock: Clock) -> dict[str, Any]:
    """Forward, backward and AdamW on one batch, dropout as configured."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    shape = (settings.batch_size, settings.target_tokens)
    labels = torch.randint(architectures.NUM_SPECIAL, settings.vocab_size, shape).to(settings.device)

    def step() -> None:
        model(**batch, labels=labels, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    # The first call warms up while operations are counted; the second is measured for memory, and timed in case there
    # is no time for more.
    flops: dict[str, int] = {}
    spare_s: list[float] = []
    calls = iter((lambda: flops.update(count_flops(step)), lambda: spare_s.append(clock.seconds(step))))
    peak_mib = harness.peak_memory_bytes(lambda: next(calls)(), settings.device) / harness.MIB
    times = clock.times(step, spare_s[0])
    return {**summarize_times("train_step_s", times), "train_peak_mib": peak_mib, "train_gflop": flops["all"] / 1e9}


@torch.inference_mode()
def _inference(model: Any, batch: dict[str, Any], settings: Settings, clock: Clock) -> dict[str, Any]:
    """The encoder alone, and beam search over one batch with the same number of tokens for every document."""
    model.eval()
    encoder = model.get_encoder()
    tokens: list[float] = []
    stamps = Stamps(clock)

    def generate(times: Stamps | None = None) -> None:
        model.generate(
            **batch,
            num_beams=settings.num_beams,
            min_new_tokens=settings.target_tokens,
            max_new_tokens=settings.target_tokens,
            do_sample=False,
            logits_processor=[times] if times is not None else [],
        )

    def document() -> None:
        stamps.seen.clear()
        generate(stamps)
        tokens.append((stamps.seen[-1] - stamps.seen[0]) / (len(stamps.seen) - 1))

    # Counting operations warms up as well.
    encoder_flops = count_flops(lambda: encoder(**batch))
    with _last_cache(model) as held:
        flops = count_flops(generate)
    decoder = {name: (flops[name] - encoder_flops[name]) / 1e9 for name in flops}
    read = measure_reads(model, held[0])
    held.clear()
    encoder_times = clock.times(lambda: encoder(**batch))
    document_times = clock.times(document)
    return {
        **summarize_times("encoder_s", encoder_times),
        **summarize_times("document_s", document_times),
        **summarize_times("token_s", tokens),
        "encoder_gflop": encoder_flops["all"] / 1e9,
        "decoder_gflop": decoder["all"],
        "decoder_attention_gflop": decoder["attention"],
        **{f"decoder_{name}": value for name, value in read.items()},
    }


class Stamps:
    """A logits processor that changes nothing and notes the time at which each token's logits arrive."""

    def __init__(self, clock: Clock) -> None:
        self.clock, self.seen = clock, list[float]()

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.clock.wait()
        self.seen.append(self.clock.now())
        return scores


@contextlib.contextmanager
def _last_cache(model: Any) -> Any:
    """A list that holds the cache of the model's last call."""
    held: list[Any] = []

    def keep(_: Any, __: Any, outputs: Any) -> None:
        held[:] = [outputs.past_key_values]

    handle = model.register_forward_hook(keep)
    try:
        yield held
    finally:
        handle.remove()


def summarize_times(name: str, times: list[float]) -> dict[str, float]:
    """Median, quartiles and number of the measured runs."""
    low, median, high = statistics.quantiles(times, n=4, method="inclusive") if len(times) > 1 else times * 3
    return {name: median, f"{name}_low": low, f"{name}_high": high, f"{name}_repeats": len(times)}


if __name__ == "__main__":
    main(sys.argv[1])
