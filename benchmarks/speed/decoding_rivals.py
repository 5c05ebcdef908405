"""CTranslate2 beside ours: a BART with a decoder of the size of ours, random weights, converted."""

import importlib.util
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from transformers import BartConfig, BartForConditionalGeneration

from transpooler.benchmarks.speed import architectures
from transpooler.benchmarks.speed.settings import Settings
from transpooler.common import say

BEAMS, SLOTS = 4, (512, 8192)
SHORT, LONG = 4, 20
"""Tokens of two runs: the difference in time is that of the tokens between, without the encoder."""


def measure_rivals(repeats: int) -> list[dict[str, Any]]:
    """Rows of milliseconds a token (CPU time), batch 1, for sources of DeepPyramidion's and of Blockwise's slots.

    To be called last: once CTranslate2's threads run, torch's products in the same process are many times slower.
    """
    if importlib.util.find_spec("ctranslate2") is None:
        say("no CTranslate2: pip install 'transpooler[rivals]' to measure it, too")
        return []
    return [row for slots in SLOTS for row in _measure(slots, repeats)]


def _measure(slots: int, repeats: int) -> Iterator[dict[str, Any]]:
    runs = {kind: _convert(_bart(slots), slots, kind) for kind in ("float32", "int8")}
    times: dict[str, list[float]] = {kind: [] for kind in runs}
    for write in runs.values():
        write(SHORT)
    for _ in range(repeats):
        for kind, write in runs.items():
            times[kind].append(_seconds(write, LONG) - _seconds(write, SHORT))
    for kind, found in times.items():
        row = {"engine": f"CTranslate2 BART {kind}", "slots": slots}
        yield row | {"ms": 1e3 * min(found) / (LONG - SHORT)}


def _bart(slots: int) -> BartForConditionalGeneration:
    torch.manual_seed(0)
    size: dict[str, Any] = {"d_model": 512, "activation_function": "relu", "vocab_size": Settings.vocab_size}
    for part in ("encoder", "decoder"):
        # The encoder's layers are not measured, and quadratic.
        layers = 1 if part == "encoder" else 6
        size |= {f"{part}_layers": layers, f"{part}_ffn_dim": 2048, f"{part}_attention_heads": 8}
    special = {"decoder_start_token_id": architectures.BOS, **architectures.SPECIAL, "forced_eos_token_id": None}
    size |= {"normalize_before": False}  # which the converter looks for
    config = BartConfig(**size, **special, max_position_embeddings=max(1024, slots))
    return BartForConditionalGeneration(config).eval()


def _convert(model: Any, slots: int, kind: str) -> Callable[[int], Any]:
    """A CTranslate2 model with the weights of `model`."""
    import ctranslate2
    from ctranslate2.converters.transformers import BartLoader

    spec = BartLoader().get_model_spec(model)
    vocabulary = ["<s>", "<pad>", "</s>", "<unk>", *(f"t{number}" for number in range(4, Settings.vocab_size))]
    spec.register_source_vocabulary(vocabulary)
    spec.register_target_vocabulary(vocabulary)
    spec.config.decoder_start_token = "<s>"
    spec.validate()
    spec.optimize(quantization=kind)
    folder = tempfile.TemporaryDirectory()
    spec.save(folder.name)
    translator = ctranslate2.Translator(folder.name, device="cpu", compute_type=kind, intra_threads=1)
    source = [[vocabulary[4 + number % 30_000] for number in range(slots)]]

    def write(tokens: int) -> None:
        lengths = {"min_decoding_length": tokens, "max_decoding_length": tokens, "max_input_length": 0}
        translator.translate_batch(source, beam_size=BEAMS, **lengths)

    write.folder = folder  # type: ignore[attr-defined]  # kept as long as the function
    return write


def _seconds(write: Callable[[int], Any], tokens: int) -> float:
    """The fastest of two runs' CPU seconds: their difference must not hold what only one of them met."""
    times = []
    for _ in range(2):
        started = time.process_time()
        write(tokens)
        times.append(time.process_time() - started)
    return min(times)
