"""Where a decoder's time goes.

    python -m transpooler.benchmarks.speed.profile [--length 8192] [--tokens 24] [--threads 1]

Beam search of the deep presets over a document that is encoded already, under torch.profiler, as shares of CPU time.
What pooling can save is in `attention`; linear layers, head and the search itself cost the same whatever was kept.
"""

import argparse
from collections import Counter
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from transpooler.benchmarks import harness
from transpooler.benchmarks.speed import architectures
from transpooler.benchmarks.speed.settings import Settings

ARCHITECTURES = ("deep_blockwise", "deep_pyramidion")
PARTS = {
    "attention": "scaled_dot_product",
    "linear layers": "aten::addmm",
    "head": "aten::mm",  # the only product without a bias
}
NOTES = """One document, {beams} beams, {tokens} new tokens, float32, {threads} CPU thread(s); encoding is not counted.
Shares of CPU time by operator (self time) from torch.profiler; ms_a_token: CPU milliseconds, profiling included.
"""


def main() -> None:
    """Profile, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--length", type=int, default=8192)
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = [row for name in ARCHITECTURES for row in _rows(name, options.length, options.tokens)]
    notes = NOTES.format(beams=Settings.num_beams, tokens=options.tokens, threads=options.threads)
    harness.write_results("speed_profile_cpu", rows, notes)


@torch.inference_mode()
def _rows(name: str, length: int, tokens: int) -> list[dict[str, Any]]:
    vocab_size = Settings.vocab_size
    model: Any = architectures.build(name, length=length, target_tokens=tokens, vocab_size=vocab_size).eval()
    batch = architectures.make_inputs(model, batch_size=1, length=length, vocab_size=vocab_size)
    encoded = model.get_encoder()(**batch)

    def write() -> None:
        limits = {"min_new_tokens": tokens, "max_new_tokens": tokens}
        model.generate(encoder_outputs=encoded, num_beams=Settings.num_beams, do_sample=False, **limits)

    write()
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        write()
    spent_us: Counter[str] = Counter()
    for event in profiled.key_averages():
        spent_us[_part(event.key)] += event.self_cpu_time_total
    whole_us = spent_us.total()
    return [
        {
            "architecture": name,
            "length": length,
            "part": part,
            "share": spent_us[part] / whole_us,
            "ms_a_token": spent_us[part] / tokens / 1e3,
        }
        for part in (*PARTS, "everything else")
    ]


def _part(operator: str) -> str:
    return next((part for part, mark in PARTS.items() if mark in operator), "everything else")


if __name__ == "__main__":
    main()
