"""A BART of the size of our decoders, random weights: CTranslate2's, that of `transformers`, and that one prepared."""

import importlib.util
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch
from transformers import BartConfig, BartForConditionalGeneration

from transpooler.benchmarks.speed import architectures
from transpooler.benchmarks.speed.settings import Settings
from transpooler.common import say
from transpooler.model.ops.decoding.prepare import prepare_for_inference

BEAMS, SLOTS = 4, (512, 8192)
SHORT, LONG = 4, 20
"""Tokens of two runs: the difference in time is that of the tokens between, without the encoder."""


def measure_rivals(repeats: int) -> list[dict[str, Any]]:
    """Rows of milliseconds a token (CPU time), batch 1, for sources of DeepPyramidion's and of Blockwise's slots."""
    rows = []
    for slots in SLOTS:
        runs = _runs(slots)
        times: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(repeats):
            for name, write in runs.items():
                times[name].append(_seconds(write, LONG) - _seconds(write, SHORT))
        for name, found in times.items():
            rows.append({"engine": name, "slots": slots, "ms": 1e3 * min(found) / (LONG - SHORT)})
    return rows


def _runs(slots: int) -> dict[str, Callable[[int], Any]]:
    """Engine -> a function that writes so many tokens about one document."""
    model: Any = _bart(slots)
    runs: dict[str, Callable[[int], Any]] = {}
    if importlib.util.find_spec("ctranslate2") is None:
        say("no CTranslate2: pip install 'transpooler[rivals]' to measure it, too")
    else:
        runs |= {f"CTranslate2 BART {kind}": _convert(model, slots, kind) for kind in ("float32", "int8")}
    runs["transformers BART"] = _generator(model, slots)
    runs["transformers BART, prepare_for_inference"] = _generator(prepare_for_inference(_bart(slots)), slots)
    return runs


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


def _generator(model: Any, slots: int) -> Callable[[int], Any]:
    ids = architectures.make_inputs(model, batch_size=1, length=slots, vocab_size=Settings.vocab_size)
    with torch.inference_mode():
        encoded = model.get_encoder()(**ids)

    @torch.inference_mode()
    def write(tokens: int) -> None:
        lengths = {"min_new_tokens": tokens, "max_new_tokens": tokens}
        model.generate(encoder_outputs=encoded, num_beams=BEAMS, do_sample=False, **lengths)

    return write


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
