"""What a token costs on one core, before and after `prepare_for_inference`, beside the memory that it must read.

    taskset -c 0 python -m transpooler.benchmarks.speed.decoding [--tokens 8] [--repeats 2]

The deep presets, 6 + 6 layers, random weights; the encoder's slots are random, for only their number matters here.
Arms and architectures take turns, so that load of others meets all of them. CTranslate2 (pip install
'transpooler[rivals]') decodes a BART of the same size, if it is installed.
"""

import argparse
import copy
import itertools
import statistics
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, EncoderDecoderCache

from transpooler.benchmarks import harness
from transpooler.benchmarks.speed import architectures
from transpooler.benchmarks.speed.cell import Clock, Stamps
from transpooler.benchmarks.speed.decoding_rivals import measure_rivals
from transpooler.benchmarks.speed.settings import Limits, Settings
from transpooler.common import progress
from transpooler.model.ops.decoding.packed_linear import PackedLinear
from transpooler.model.ops.decoding.prepare import prepare_for_inference
from transpooler.model.outputs import EncoderOutput

BLOCKWISE, PYRAMIDION = "deep_blockwise", "deep_pyramidion"
LENGTHS, BATCHES, BEAMS = (8192, 32768), (1, 4), (1, 4, 8)
ARMS = ("before", "fp32", "bf16", "int8")
STREAMED_MIB = 256
GB = 1e9
NOTES = """One thread on one core, its CPU seconds. ms: minimum over {repeats} turns of the median time between two of
{tokens} tokens of a text without an end, beam search of transformers included. before: the same code without
prepare_for_inference, fp32. read_mib: weights of decoder and head at their precision (without the maps of cross-keys
and cross-values, which run once a document) and cached keys and values, float32. limit_ms: read_mib at {bandwidth:.1f}
GB/s, the most that a sum over {streamed} MiB reached in this run. ratio_to_limit: ms / limit_ms. blockwise_over_this:
Blockwise's ms over this row's, same length, batch, beams and arm. The slots of DeepPyramidion are 512 at any length.
"""


class Decoder:
    """One architecture at one number of slots; `plain` stays as it is, `prepared` is packed anew for each arm."""

    def __init__(self, name: str, length: int) -> None:
        built: Any = architectures.build(name, length=length, target_tokens=64, vocab_size=Settings.vocab_size)
        self.name, self.length, self.plain = name, length, built.eval()
        self.plain.generation_config.eos_token_id = None  # exactly as many tokens as are asked for
        self.prepared = copy.deepcopy(self.plain)
        kept = torch.tensor([length])
        for stage in self.plain.stages:
            kept = stage.slots_of_each(kept)
        self.slots = int(kept)

    def model(self, arm: str) -> Any:
        """The model of an arm."""
        return self.plain if arm == "before" else prepare_for_inference(self.prepared, arm)


def measure(model: Any, cross: list[tuple[Tensor, Tensor]], beams: int, tokens: int) -> tuple[float, float]:
    """(median seconds a token, MiB that the last one read) of beam search over documents with these keys and values."""
    batch, heads, slots, width = cross[0][0].shape
    cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
    for layer, (keys, values) in enumerate(cross):
        cache.cross_attention_cache.update(keys, values, layer)
        cache.is_updated[layer] = True
    stamps = Stamps(Clock(Settings(clock="process"), Limits()))
    memory = torch.zeros(1).expand(batch, slots, heads * width)  # only its shape is looked at
    encoded = EncoderOutput(last_hidden_state=memory, attention_mask=torch.ones(batch, slots, dtype=torch.int64))
    model.generate(
        encoder_outputs=encoded,
        past_key_values=cache,
        num_beams=beams,
        max_new_tokens=tokens,
        do_sample=False,
        logits_processor=[stamps],
    )
    between = [last - first for first, last in itertools.pairwise(stamps.seen)]
    return statistics.median(between), read_mib(model, cache)


def read_mib(model: Any, cache: EncoderDecoderCache) -> float:
    """MiB that a token reads: weights of decoder and head as they lie in memory, cached keys and values."""
    layers: list[Any] = [*cache.cross_attention_cache.layers, *cache.self_attention_cache.layers]
    total: int = sum(layer.keys.nbytes + layer.values.nbytes for layer in layers if layer.keys is not None)
    modules = {"head": model.get_output_embeddings(), **dict(model.get_decoder().named_modules())}
    for name, module in modules.items():
        once = name.endswith(("cross_attention.k_proj", "cross_attention.v_proj"))
        if not once and not isinstance(module, torch.nn.Embedding):
            total += _weight_bytes(module)
    return total / harness.MIB


def _weight_bytes(module: torch.nn.Module) -> int:
    if isinstance(module, PackedLinear):
        parts = (module.packed, module.scales, module.packed_bias)
        return sum(part.nbytes for part in parts if part is not None)
    return sum(weight.nbytes for weight in module.parameters(recurse=False))


def stream_gb_s() -> float:
    """GB/s of a sum over memory that no cache holds; the best of three."""
    memory = torch.ones(STREAMED_MIB * 2**18)
    memory.sum()
    times = []
    for _ in range(3):
        started = time.thread_time()
        memory.sum()
        times.append(time.thread_time() - started)
    return memory.nbytes / min(times) / GB


def cells(decoders: list[Decoder]) -> Iterator[tuple[int, int, int]]:
    """(length, batch, beams)."""
    return itertools.product(sorted({decoder.length for decoder in decoders}), BATCHES, BEAMS)


@torch.inference_mode()
def measure_all(tokens: int, repeats: int, lengths: tuple[int, ...]) -> tuple[list[dict[str, Any]], float]:
    """The rows of the table, and the bandwidth in GB/s."""
    decoders = [Decoder(name, length) for length in lengths for name in (BLOCKWISE, PYRAMIDION)]
    found: dict[tuple, tuple[float, float]] = {}
    bandwidth = stream_gb_s()
    with progress("decoding (turns)", repeats * len(list(cells(decoders)))) as bar:
        for _, (length, batch, beams) in itertools.product(range(repeats), list(cells(decoders))):
            for decoder in (each for each in decoders if each.length == length):
                cross = _random_cache(decoder, batch)
                for arm in ARMS:
                    seconds, mib = measure(decoder.model(arm), cross, beams, tokens)
                    key = (length, batch, beams, decoder.name, arm)
                    found[key] = min(found.get(key, (seconds, mib)), (seconds, mib))
            bandwidth = max(bandwidth, stream_gb_s())
            bar.advance()
    return [_row(key, found, bandwidth) for key in found], bandwidth


def _random_cache(decoder: Decoder, batch: int) -> list[tuple[Tensor, Tensor]]:
    config = decoder.plain.config
    shape = (batch, config.num_heads, decoder.slots, config.d_model // config.num_heads)
    return [(torch.rand(shape), torch.rand(shape)) for _ in range(config.decoder_layers)]


def _row(key: tuple, found: dict[tuple, tuple[float, float]], bandwidth: float) -> dict[str, Any]:
    length, batch, beams, name, arm = key
    seconds, mib = found[key]
    limit_s = mib * harness.MIB / (bandwidth * GB)
    before, blockwise = found[(*key[:4], "before")][0], found[(*key[:3], BLOCKWISE, arm)][0]
    return {
        "architecture": name,
        "tokens": length,
        "batch": batch,
        "beams": beams,
        "arm": arm,
        "ms": 1e3 * seconds,
        "read_mib": mib,
        "limit_ms": 1e3 * limit_s,
        "ratio_to_limit": seconds / limit_s,
        "faster_than_before": before / seconds,
        "blockwise_over_this": blockwise / seconds,
    }


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows, bandwidth = measure_all(options.tokens, options.repeats, tuple(options.lengths))
    rivals = measure_rivals(options.repeats)
    notes = NOTES.format(repeats=options.repeats, tokens=options.tokens, bandwidth=bandwidth, streamed=STREAMED_MIB)
    tables = {"ours": rows, "beside others: batch 1, 4 beams": rivals}
    to_read = harness.markdown_tables(tables)
    harness.write_results("speed_decoding_cpu", rows, notes, to_read=to_read, more={"rivals": rivals})


if __name__ == "__main__":
    main()
