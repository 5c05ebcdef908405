"""What reading a very long document takes is said before, and how far it is meanwhile."""

from typing import Any

import pytest
import torch

from tests.unit.model.compressor.test_compressor import POOLING, compressor
from tests.unit.model.test_model import RATIOS, build
from transpooler.model.layers import streaming
from transpooler.trainer.evaluation import long_documents
from transpooler.trainer.evaluation.long_documents import reading_bytes, reading_work, watch_reading

PIECE = 16
MODELS: dict[str, Any] = {
    "seq2seq": lambda: build(pooling=RATIOS, encoder_layers=3),
    "staggered": lambda: build(pooling=RATIOS, encoder_layers=3, stagger_blocks=True),
    "compressor": lambda: compressor("llama", pooling=POOLING, block_size=8),
}


@pytest.mark.parametrize("kind", MODELS)
def test_progress_ends_where_it_says(
    kind: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(streaming, "PIECE_TOKENS", PIECE)
    monkeypatch.setattr(long_documents, "PIECE_TOKENS", PIECE)
    monkeypatch.setattr(long_documents, "SAID_FROM_TOKENS", 64)
    model = MODELS[kind]()
    heard: list[int] = []
    encoder = model.get_encoder()
    with torch.no_grad(), streaming.watching(heard.append), watch_reading(model, [100]):
        encoder(torch.randint(6, 90, (1, 100)))
    assert sum(heard) == reading_work(model, [100]) > 100
    assert "reading 100 tokens takes about 0.0 GiB beside the model" in capsys.readouterr().err
    with watch_reading(model, [63]):
        pass
    assert capsys.readouterr().err == ""
    assert streaming._watchers == []


def test_too_little_memory_is_said_before(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    model = build(pooling=RATIOS)
    free = long_documents.psutil.virtual_memory()._replace(available=2**30)
    monkeypatch.setattr(long_documents.psutil, "virtual_memory", lambda: free)
    monkeypatch.setattr(long_documents, "reading_bytes", lambda *_: 5 * 2**29)
    with watch_reading(model, [10**6]):
        pass
    assert (
        "takes about 2.5 GiB beside the model, of which 1.0 GiB are free: it may be killed" in capsys.readouterr().err
    )


def test_the_estimate_holds_what_grows_with_the_document() -> None:
    """Hidden states before and after the first pooling, or a staggered layer, in float32; a piece more."""
    for staggered, widths in ((False, 1.5), (True, 2)):
        model = build(pooling=RATIOS, stagger_blocks=staggered)
        grown = reading_bytes(model, [2_000_000]) - reading_bytes(model, [1_000_000])
        assert grown == 1_000_000 * (widths * model.config.d_model * 4 + long_documents.BYTES_OF_INDICES)
