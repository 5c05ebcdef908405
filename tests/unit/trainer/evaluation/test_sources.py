"""Sources of a summary's sentences: attention followed back by hand, and characters of the document as it was given."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tests.stock_models import stock_causal
from transpooler.data_pipeline.objectives.sentences import SentenceEnds
from transpooler.data_pipeline.tokenizer import load_tokenizer
from transpooler.model.grounding import Trace
from transpooler.model.outputs import Selection
from transpooler.trainer.config import load_config
from transpooler.trainer.config.evaluation import GenerationConfig
from transpooler.trainer.evaluation.highlights import Reading
from transpooler.trainer.evaluation.sources import ground, trace, weigh_tokens
from transpooler.trainer.evaluation.summarizer import Summarizer
from transpooler.trainer.weights.models import build_model

TOKENS = [b"Rain", b" fell", b".", b" Dogs", b" bark", b" Wet", b"<s>", b"</s>"]
SOURCE = [0, 1, 2, 3, 4, 2, 5, 4]  # "Rain fell. Dogs bark. Wet bark"
OFFSETS = [(0, 4), (4, 9), (9, 10), (10, 15), (15, 20), (20, 21), (21, 25), (25, 30)]


class Traced:
    """Slots 0, 1, 2 hold tokens (0, 1), (3, 4) and 6 of the document; slot 3 holds <s>, where attention rests."""

    device = torch.device("cpu")

    def __init__(self, attention: list[list[float]]) -> None:
        self.attention = torch.tensor(attention)

    def eval(self) -> "Traced":
        return self

    def trace(self, input_ids: Any, written: Any) -> Trace:
        assert (input_ids.shape, written.shape) == ((1, 10), (1, len(self.attention)))
        flow = torch.tensor([[1, 0.75, 0.25, 0, 0.5, 0.5, 0, 1, 0, 0]])
        slots = torch.tensor([[3, 0, 0, -1, 1, 1, -1, 2, -1, -1]])
        return Trace(self.attention, Selection(flow, slots, [flow]))


def decoded(ids: list[int], **_: Any) -> str:
    return b"".join(TOKENS[token] for token in ids).decode()


def find(attention: list[list[float]], written: list[int]) -> Any:
    tokenizer: Any = SimpleNamespace(decode=decoded)
    model: Any = Traced(attention)
    read = [6, *SOURCE, 7]
    return ground(trace(model, read, written), tokenizer, SentenceEnds(TOKENS), read, OFFSETS, written, num_prefix=1)


def test_each_sentence_names_what_it_read_more_than_the_others():
    first, second = [0.3, 0.1, 0.0, 0.6], [0.0, 0.1, 0.3, 0.6]
    found = find([first, first, second], [5, 2, 3])  # "Wet." and " Dogs"
    assert [sentence.text for sentence in found] == ["Wet.", "Dogs"]
    # Passages "Rain fell.", " Dogs bark." and " Wet bark"; <s> takes most attention, and is no source of anything.
    assert [(source.start, source.end, source.weight) for source in found[0].sources] == [(0, 10, 1.0)]
    assert [(source.start, source.end) for source in found[1].sources] == [(21, 30)]
    (alone,) = find([[0.3, 0.1, 0.0, 0.6]], [0])
    assert [(source.start, source.end) for source in alone.sources] == [(0, 10), (10, 21)]
    assert [source.weight for source in alone.sources] == pytest.approx([0.75, 0.25])


def test_attention_is_shared_out_by_what_flowed_into_the_slot():
    traced = Traced([[0.4, 0.2, 0.1, 0.3]]).trace(torch.zeros(1, 10), torch.zeros(1, 1))
    weights = weigh_tokens(traced, [(0, 1)])
    np.testing.assert_allclose(weights, [[0.3, 0.3, 0.1, 0, 0.1, 0.1, 0, 0.1, 0, 0]], atol=1e-7)


@pytest.mark.parametrize("kind", ["seq2seq", "compressor"])
def test_places_are_those_of_the_text_as_it_was_given(kind, tiny_settings, shards: Path, tmp_path):
    """Characters that cleaning composes or takes away count as they stand in the document."""
    tokenizer = load_tokenizer(shards / "tokenizer")
    settings = ["data.max_source_tokens=60", "model.pooling=[{after_layer: 1, length: 24}]"]
    if kind == "compressor":
        stock_causal(tokenizer, tmp_path / "llama")
        config = load_config([], [f"train.init_from={tmp_path / 'llama'}", f"data.shards={shards}", *settings])
    else:
        config = load_config([], [*tiny_settings, *settings])
    model = build_model(config, tokenizer)
    text = "alpha cafe\u0301 beta. gamma\u0007 delta! epsilon zeta."
    generation = GenerationConfig(max_new_tokens=30, num_beams=1)
    summarizer = Summarizer(model, tokenizer, generation, max_source_tokens=60)
    (summary,) = summarizer.summarize(text, progress=False)
    (plain,) = summarizer.summarize(text, sources=False, progress=False)
    assert summary.text == plain.text
    assert (plain.sentences, plain.reading) == (None, None)
    assert summary.sentences
    sentences = {"alpha cafe\u0301 beta.", " gamma\u0007 delta!", " epsilon zeta."}
    for sentence in summary.sentences:
        assert 1 <= len(sentence.sources) <= 3
        assert {text[source.start : source.end] for source in sentence.sources} <= sentences
        assert sum(source.weight for source in sentence.sources) <= 1 + 1e-6
    assert summary.as_dict()["sentences"][0]["sources"][0].keys() == {"start", "end", "weight"}
    shown = summary.on_page("name")
    assert "".join(shown["pieces"]) == text  # as it was given, not as it was cleaned
    assert [len(row) for row in shown["stages"]] == [len(shown["pieces"])]
    assert 0 < sum(shown["stages"][0]) <= 24 + 1


def test_a_model_that_writes_nothing_has_no_sources_but_a_reading(tiny_settings, shards: Path):
    tokenizer = load_tokenizer(shards / "tokenizer")
    model: Any = build_model(load_config([], tiny_settings), tokenizer)
    model.generate = lambda input_ids, **_: torch.full((len(input_ids), 2), tokenizer.eos_token_id)
    (summary,) = Summarizer(model, tokenizer, GenerationConfig()).summarize("alpha beta.", progress=False)
    assert (summary.text, summary.sentences) == ("", ())
    shown = summary.on_page("name")
    assert ("".join(shown["pieces"]), len(shown["stages"])) == ("alpha beta.", 2)


def test_pieces_are_the_text_however_its_tokens_lie():
    """A character of several tokens, white space between tokens, and some before the first."""
    starts = np.array([1, 3, 3, 5])
    row = np.array([0.25, 0.5, 1, 0], np.float32)
    reading = Reading(text=" ab\u00e9\n\nc", starts=starts, stages=[row], stage_names=["kept"])
    assert reading.highlight() == {
        "pieces": [" ab", "\u00e9\n", "\nc"],
        "stages": [[0.25, 1, 0]],
        "stage_names": ["kept"],
    }
    empty = Reading(text="", starts=starts[:0], stages=[row[:0]], stage_names=["kept"])
    assert empty.highlight() == {"pieces": [], "stages": [[]], "stage_names": ["kept"]}
