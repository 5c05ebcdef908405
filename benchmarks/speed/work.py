"""What is computed and what a decoder reads: operations counted as they run, bytes from the tensors it holds."""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from transpooler.benchmarks.harness import MIB


def _sdpa_on_cpu(query: Any, key: Any, value: Any, *_: Any, out_val: Any = None, **__: Any) -> int:
    """The counter's own rule for attention, which it does not apply to the CPU's fused kernel by itself."""
    return sdpa_flop_count(query, key, value)


def _sdpa_backward_on_cpu(gradient: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_backward_flop_count(gradient, query, key, value)


def count_flops(function: Callable[[], Any]) -> dict[str, int]:
    """Count floating-point operations of one call (a multiply-add is two): all, and those of scores and values.

    Fused kernels and batched products count as attention; projections run as plain matrix products.
    """
    kernels = {
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _sdpa_on_cpu,
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _sdpa_backward_on_cpu,
    }
    with FlopCounterMode(display=False, custom_mapping=kernels) as counter:
        function()
    operations = counter.get_flop_counts().get("Global", {})
    attention = sum(count for operation, count in operations.items() if _is_attention(str(operation)))
    return {"all": sum(operations.values()), "attention": attention}


def measure_reads(model: Any, cache: Any) -> dict[str, float]:
    """Sum up the MiB that the last step of a document reads: weights of decoder and head, cached keys and values."""
    memory = {"cross": cache.cross_attention_cache, "self": cache.self_attention_cache}
    cached = {name: sum(_layer_bytes(layer) for layer in part.layers) for name, part in memory.items()}
    decoder = model.get_decoder()
    embeddings = {id(weight) for module in decoder.modules() for weight in _embedding_weights(module)}
    weights = sum(weight.nbytes for weight in decoder.parameters() if id(weight) not in embeddings)
    weights += sum(weight.nbytes for weight in model.get_output_embeddings().parameters())
    return {
        "cache_mib": (cached["cross"] + cached["self"]) / MIB,
        "token_read_mib": (cached["cross"] + cached["self"] + weights) / MIB,
    }


def _is_attention(operation: str) -> bool:
    return "scaled_dot_product" in operation or "bmm" in operation


def _layer_bytes(layer: Any) -> int:
    return int(layer.keys.nbytes + layer.values.nbytes)


def _embedding_weights(module: Any) -> list[Any]:
    return [module.weight] if isinstance(module, torch.nn.Embedding) else []
