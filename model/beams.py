"""Beams of a document share what the encoder kept of it.

`transformers` repeats the encoder's output for every beam and reorders the cross-attention cache after every token.
Here a document's keys and values are computed, held and read once, and its beams are further queries. With 8,192 slots
and 4 beams that is a quarter of the memory, and no copy of it for each token.
"""

from typing import Any

from torch import Tensor
from transformers.cache_utils import EncoderDecoderCache

SHARED = ("encoder_outputs", "attention_mask")


class SharedMemoryGeneration:
    """`generate` that never repeats the encoder's output, whatever num_beams and num_return_sequences are."""

    def _expand_inputs_for_generation(
        self, expand_size: int = 1, is_encoder_decoder: bool = False, input_ids: Any = None, **model_kwargs
    ) -> tuple[Any, dict[str, Any]]:
        shared = {name: model_kwargs.pop(name) for name in SHARED if name in model_kwargs}
        # Not as an encoder-decoder: that would ask for encoder_outputs, to repeat them.
        stock: Any = super()
        input_ids, model_kwargs = stock._expand_inputs_for_generation(expand_size, False, input_ids, **model_kwargs)
        return input_ids, model_kwargs | shared

    def _reorder_cache(self, past_key_values: EncoderDecoderCache, beam_idx: Tensor) -> EncoderDecoderCache:
        """Beams swap only within their document, so only their self-attention cache is reordered."""
        past_key_values.self_attention_cache.reorder_cache(beam_idx)  # type: ignore[arg-type]
        return past_key_values


def beams_as_queries(q: Tensor, num_documents: int) -> Tensor:
    """(B · r, H, T, K), r beams of B documents -> (B, H, r · T, K)."""
    beams = q.shape[0] // num_documents
    return q if beams == 1 else q.unflatten(0, (num_documents, beams)).transpose(1, 2).flatten(2, 3)


def queries_as_beams(out: Tensor, num_rows: int, dim: int) -> Tensor:
    """Undo `beams_as_queries`: dimension `dim` of (B, ..., r · T, ...) holds the queries; (B · r, ..., T, ...)."""
    beams = num_rows // out.shape[0]
    return out if beams == 1 else out.unflatten(dim, (beams, -1)).movedim(dim, 1).flatten(0, 1)
