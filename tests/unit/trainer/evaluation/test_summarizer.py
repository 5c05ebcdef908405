"""`transpooler.load` with a real, untrained model: order, batches, laziness, notebooks, the example of the docs."""

import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from html import unescape
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import transpooler
from tests.paths import ROOT
from tests.tiny import write_llama
from transpooler.common import UserError
from transpooler.data_pipeline.text_tokens import head_of
from transpooler.data_pipeline.tokenizer import load_tokenizer
from transpooler.trainer.config import load_config
from transpooler.trainer.evaluation import summarizer as module
from transpooler.trainer.evaluation.summarizer import Summarizer, load
from transpooler.trainer.weights.export import export_model
from transpooler.trainer.weights.models import build_model

TEXTS = ["alpha " * length + "beta. gamma." for length in (30, 2, 31, 1, 3, 29, 28, 4)]
FEW: Any = {"max_new_tokens": 5, "num_beams": 2, "progress": False}


@pytest.fixture
def folder(tiny_settings: list[str], tmp_path: Path) -> Path:
    config = load_config([], tiny_settings)
    tokenizer = load_tokenizer(Path(config.data.shards) / "tokenizer")
    path = tmp_path / "runs" / "finetune" / "export"
    export_model(build_model(config, tokenizer), tokenizer, path, config, step=0)
    return path


def note_batches(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The lengths of the documents of each batch that is generated."""
    generate, seen = module.generate_ids, []

    def noted(model: Any, tokenizer: Any, sources: Any, *rest: Any) -> Any:
        seen.append([len(ids) for ids in sources])
        return generate(model, tokenizer, sources, *rest)

    monkeypatch.setattr(module, "generate_ids", noted)
    return seen


def test_documents_of_like_length_go_together_and_results_keep_their_order(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load(folder)
    alone = [model.summarize(text, **FEW)[0] for text in TEXTS]
    seen = note_batches(monkeypatch)
    together = model.summarize(TEXTS, batch_size=4, **FEW)
    assert [summary.text for summary in together] == [summary.text for summary in alone]
    assert [summary.read_ids for summary in together] == [summary.read_ids for summary in alone]
    assert [len(lengths) for lengths in seen] == [4, 4]
    assert max(seen[1]) < min(seen[0])  # the long ones first: the first text is due next
    assert all(summary.sentences and summary.sentences[0].sources for summary in together)
    plain = model.summarize(TEXTS[:1], sources=False, **FEW)
    assert (plain[0].text, plain[0].sentences) == (alone[0].text, None)


def test_texts_are_read_a_window_ahead_at_most(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, read = load(folder), []

    def endless() -> Any:
        for number in count():
            read.append(number)
            yield f"alpha {number}"

    monkeypatch.setattr(model, "generation", transpooler.load_config([], ["generation.batch_size=2"]).generation)
    made = model.stream(endless(), head_of, window_batches=3)
    assert [item for item, _ in islice(made, 7)] == [f"alpha {number}" for number in range(7)]
    assert len(read) == 12


@pytest.mark.parametrize(("num_done", "num_batches"), [(1, 4), (3, 4), (4, 3), (6, 1), (8, 0)])
def test_going_on_gives_what_an_undisturbed_run_gives_from_the_same_batches(
    folder: Path, monkeypatch: pytest.MonkeyPatch, num_done: int, num_batches: int
) -> None:
    settings = transpooler.load_config([], ["generation={batch_size: 2, max_new_tokens: 4, num_beams: 1}"]).generation
    loaded = load(folder)
    model = Summarizer(loaded.model, loaded.tokenizer, settings, with_sources=True)
    seen = note_batches(monkeypatch)
    whole = list(model.stream(TEXTS, head_of, window_batches=3))
    undisturbed, seen[:] = list(seen), []
    rest = list(model.stream(TEXTS, head_of, window_batches=3, num_done=num_done))
    assert [(text, summary.as_dict()) for text, summary in rest] == [
        (text, summary.as_dict()) for text, summary in whole[num_done:]
    ]
    assert all(batch in undisturbed for batch in seen)
    assert len(seen) == num_batches


def test_a_notebook_shows_the_page_in_a_frame(folder: Path) -> None:
    model = load(folder)
    summaries = model.summarize(["alpha <b>beta.", "gamma."], **FEW)
    shown, first = summaries._repr_html_(), summaries[0]._repr_html_()
    assert shown
    assert first
    assert shown.startswith("<iframe ")
    inner = re.search(r'srcdoc="([^"]*)"', shown)
    assert inner
    page = unescape(inner[1])
    assert page.count('<div class="grounded">') == 2
    assert "alpha &lt;b&gt;beta." in re.sub(r"</?span[^>]*>", "", page)
    assert 'class="grounded"' in unescape(first)
    assert model.summarize("alpha", sources=False, **FEW)._repr_html_() is None
    assert model.summarize([], **FEW)._repr_html_() is None


WRONG: list[tuple[Any, str]] = [
    (None, "texts: NoneType; give a text, or several as a list"),
    (7, "texts: int; give"),
    (b"alpha", "texts: bytes; give"),
    ({"text": "alpha"}, "texts: dict; give"),
    (Path("a.txt"), "texts: PosixPath; give"),
    (["alpha", None], "texts[1]: NoneType, not a text"),
    (iter(["alpha", None]), "texts[1]: NoneType, not a text"),
    ([["alpha"]], "texts[0]: list, not a text"),
    ([b"alpha"], "texts[0]: bytes, not a text"),
    ("", "texts[0]: empty; nothing to summarize"),
    (["alpha", " \n\x00"], "texts[1]: empty; nothing to summarize"),
    ("a\ud800b", "texts[0]: holds half of a surrogate pair at character 1"),
]
WRONG_SETTINGS: list[tuple[str, Any, str]] = [
    *(("keep", value, f"keep is {value!r}; must be") for value in (0, -1, 1.5, "8", True, float("nan"), [4])),
    *(("max_new_tokens", value, "max_new_tokens is ") for value in (0, 2.5, None, "x", True, 10**12)),
    ("num_beams", -2, "num_beams is -2; must be at least 1"),
    ("batch_size", 0.5, "batch_size is 0.5; must be a whole number"),
    ("length_penalty", "x", "length_penalty is 'x'; must be a number"),
    ("suppress_tokens", [9999], "generation.suppress_tokens has 9999"),
    *(("max_source_tokens", value, "max_source_tokens is ") for value in (0, -3, 1, "9", 2.5, True)),
]


def test_wrong_texts_and_settings_take_one_line_before_anything_is_generated(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, seen = load(folder), note_batches(monkeypatch)
    for texts, message in WRONG:
        with pytest.raises(UserError, match=re.escape(message)) as caught:
            model.summarize(texts, **FEW)
        assert "\n" not in str(caught.value)
    for name, value, message in WRONG_SETTINGS:
        with pytest.raises(UserError, match=re.escape(message)) as caught:
            model.summarize("alpha", **FEW | {name: value})
        assert "\n" not in str(caught.value)
    assert seen == []
    for source in (None, 5):
        with pytest.raises(UserError, match="source: "):
            load(source)  # type: ignore[arg-type]
    numbers: Any = {"keep": np.int64(4), "max_source_tokens": np.int64(9)}
    assert len(model.summarize(["alpha"], **numbers, **FEW)) == 1


def test_settings_in_a_model_folder_that_are_wrong_are_named(folder: Path) -> None:
    path = folder / "generation_config.json"
    for text, message in (('{"num_beams": "x"}', "num_beams is 'x'; must be a whole number"), ("[]", "is no mapping")):
        path.write_text(text)
        with pytest.raises(UserError, match=f"generation_config.json: {message}"):
            load(folder)


def test_threads_of_one_model_get_what_they_would_get_alone(folder: Path) -> None:
    """Also with budgets of their own, and in the passes that find sources, which meet in the same modules."""
    model, budgets = load(folder), (4, 8, None, 0.125)
    jobs = [(text, budgets[number % 4]) for number, text in enumerate(TEXTS * 3)]

    def run(job: tuple[str, Any]) -> Any:
        return [summary.as_dict() for summary in model.summarize(job[0], keep=job[1], **FEW)]

    expected, before = [run(job) for job in jobs], model.model.stages
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(run, jobs)) == expected
    assert model.model.stages == before


def test_a_model_is_traced_by_several_threads(folder: Path) -> None:
    assert_traced_by_threads(load(folder).model)


def test_a_compressor_is_traced_by_several_threads(shards: Path, tmp_path: Path) -> None:
    settings = [f"train.init_from={write_llama(shards, tmp_path / 'llama')}", f"data.shards={shards}"]
    config = load_config([], [*settings, "model.encoder_layers=2", "model.pooling=[{after_layer: 2, length: 8}]"])
    tokenizer = load_tokenizer(shards / "tokenizer")
    export_model(build_model(config, tokenizer), tokenizer, tmp_path / "compressor", config, step=0)
    model: Any = load(tmp_path / "compressor").model
    before = model.reader.config._attn_implementation
    assert_traced_by_threads(model)
    assert model.reader.config._attn_implementation == before != "eager"


def assert_traced_by_threads(model: Any) -> None:
    """What each thread finds read is of its own document, to the bit; others generate meanwhile."""
    draw = torch.Generator().manual_seed(0)
    pairs = [
        (torch.randint(6, 290, (1, 20 + 7 * n), generator=draw), torch.randint(6, 290, (1, 4 + n), generator=draw))
        for n in range(6)
    ] * 4

    def trace(pair: tuple[torch.Tensor, torch.Tensor]) -> list[torch.Tensor]:
        found = model.trace(*pair)
        written = model.generate(pair[0], num_beams=1, max_new_tokens=4, do_sample=False)
        return [found.attention_TS, found.selection.weights_BN, written]

    expected = [trace(pair) for pair in pairs]
    with ThreadPoolExecutor(4) as pool:
        for got, wanted in zip(pool.map(trace, pairs), expected, strict=True):
            assert all(map(torch.equal, got, wanted))


def test_mistakes_are_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="num_beams is 0"):
        load(folder).summarize("alpha", num_beams=0)
    with pytest.raises(TypeError, match="num_beam"):
        load(folder).summarize("alpha", num_beam=2)
    with pytest.raises(UserError, match="nothing: no exported model there"):
        load(tmp_path / "nothing")


def test_the_examples_of_the_docs_run_and_importing_loads_no_torch(folder: Path, tmp_path: Path) -> None:
    examples = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "summarizing.md").read_text(encoding="utf-8"), re.S)
    assert len(examples) == 2
    assert folder == tmp_path / "runs" / "finetune" / "export"  # where the example looks
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text(f"alpha beta {name}. gamma delta.")
    light = "import sys, transpooler; assert 'torch' not in sys.modules\n"
    alone = "import sys; sys.modules['transpooler'] = None\ntexts = ['alpha beta. gamma.', 'delta']\n"
    ours, theirs = (
        subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
        for code in (light + examples[0], f"{alone}{examples[1]}print(found)")
    )
    assert ours.returncode == theirs.returncode == 0, ours.stderr + theirs.stderr
    assert "'sentences'" in theirs.stdout
    assert re.search(r"^ +\d+ % (alpha|gamma)", ours.stdout, re.M), ours.stdout


def test_a_model_of_the_hub_is_loaded_by_its_id(folder: Path, tmp_path: Path) -> None:
    repository = tmp_path / "hub" / "models--some--papers"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    (repository / "snapshots").mkdir()
    (repository / "snapshots" / ("0" * 40)).symlink_to(folder)
    script = "import transpooler; print(len(transpooler.load('some/papers').summarize(['alpha'], max_new_tokens=3)))"
    env = {"HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        ["/usr/bin/env", *(f"{key}={value}" for key, value in env.items()), sys.executable, "-c", script],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (0, "1\n"), done.stderr
