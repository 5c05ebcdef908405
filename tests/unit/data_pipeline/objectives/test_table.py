"""The table of objectives: a row and a module are all that a new one needs."""

import sys
from types import ModuleType

import numpy as np
import pytest

from tests.paths import ROOT
from transpooler.common import UserError
from transpooler.data_pipeline import objectives
from transpooler.data_pipeline.config import DataConfig
from transpooler.data_pipeline.limits import cut, cut_length
from transpooler.data_pipeline.loading.examples import ExampleMaker
from transpooler.data_pipeline.objectives import OBJECTIVES, Objective
from transpooler.data_pipeline.shards.dataset import Document
from transpooler.data_pipeline.tokenizer import train_tokenizer
from transpooler.trainer.config.load import config_from_dict


def test_each_module_that_makes_pairs_has_a_row():
    folder = ROOT / "data_pipeline/objectives"
    assert OBJECTIVES.keys() == {file.stem for file in folder.glob("*.py") if "\ndef make_pair(" in file.read_text()}
    assert all(callable(objective.make_pair) for objective in OBJECTIVES.values())


def test_a_new_objective_needs_no_other_change(monkeypatch):
    module = ModuleType("transpooler.data_pipeline.objectives.reverse")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    module.make_pair = lambda source, *_: (source, source[::-1])  # type: ignore[attr-defined]
    monkeypatch.setitem(objectives.OBJECTIVES, "reverse", Objective(name="reverse"))
    data = config_from_dict({"data": {"objective": "reverse", "max_source_tokens": 9, "max_target_tokens": 5}}).data
    document = Document("train-00000000", np.arange(6, 46, dtype=np.uint16), None, {})
    source, target = ExampleMaker(data, train_tokenizer(iter(["text"]), 300), 0).example(document, "a", 1)
    assert len(source) == 9
    assert target.tolist() == [*source[-2:-6:-1].tolist(), source[-1]]


def test_an_unknown_objective_is_named_with_those_there_are():
    with pytest.raises(UserError) as error:
        config_from_dict({"data": {"objective": "guess", "train_split": "pretrain"}})
    assert str(error.value) == "data.objective is 'guess'; choose one of summarize, denoise, gap_sentences"


def test_only_summarize_needs_summaries():
    assert [name for name in OBJECTIVES if DataConfig(objective=name).needs_summaries] == ["summarize"]
    with pytest.raises(UserError, match=r"data.objective is 'summarize', but split pretrain has no summaries"):
        config_from_dict({"data": {"train_split": "pretrain"}})


@pytest.mark.parametrize(("length", "expected"), [(0, [2]), (3, [7, 8, 9, 2]), (4, [7, 8, 9, 2])])
def test_a_limit_includes_the_end_of_the_text(length, expected):
    tokens = np.arange(7, 7 + length, dtype=np.uint16)
    assert cut(tokens, 4, 2).tolist() == cut(tokens.tolist(), 4, 2).tolist() == expected
    assert cut(tokens, 4, 2).dtype == np.int64
    assert cut_length(length, 4) == len(expected)
    assert cut_length(np.array([length], np.uint32), 4).tolist() == [len(expected)]
    for limit in (2, 3, 4, 9):
        begun = cut(tokens, limit, 2, (5, 6))
        assert begun.tolist() == [*[5, 6, *tokens.tolist()][: limit - 1], 2]
        assert cut_length(length, limit, 2) == len(begun)
