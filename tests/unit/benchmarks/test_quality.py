"""`transpooler bench quality`: studies are checked, their runs resume, their statistics agree with other arithmetic."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from tests.paths import ROOT
from tests.tiny import STUDY
from transpooler.benchmarks.quality.bench import write_outputs
from transpooler.benchmarks.quality.cells import find_cell, sum_seconds
from transpooler.benchmarks.quality.needles import (
    FACT_WORDS,
    make_document,
    make_vocabulary,
    recall_facts,
    write_needles,
)
from transpooler.benchmarks.quality.outcome import ArmResult, compare_arms, judge, list_seeds
from transpooler.benchmarks.quality.plots import write_budget_plot
from transpooler.benchmarks.quality.runs import Workplace, _check_learned, agree, check_study, plan_run
from transpooler.benchmarks.quality.statistics import Estimate, compare, estimate
from transpooler.benchmarks.quality.study import load_study, resolve_config
from transpooler.benchmarks.quality.table import format_arms, format_notes, format_seeds
from transpooler.common import UserError
from transpooler.launch.cli import main
from transpooler.trainer.config import load_config
from transpooler.trainer.config.presets import preset_names


def test_intervals_agree_with_the_standard_error_of_the_mean() -> None:
    rng = np.random.default_rng(3)
    values, ones = rng.normal(5.0, 2.0, (1, 400)), np.ones(400)
    found = estimate(values, ones)
    error = float(values.std(ddof=1)) / 20
    assert found.mean == pytest.approx(values.mean())
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * error, rel=0.1)


def test_the_loss_is_that_of_all_tokens() -> None:
    sums, tokens = np.array([10.0, 2.0, 9.0]), np.array([5.0, 4.0, 3.0])
    assert estimate((sums / tokens)[None], tokens).mean == pytest.approx(21 / 12)


def test_paired_differences_do_not_know_that_documents_differ() -> None:
    rng = np.random.default_rng(4)
    hard = rng.normal(0, 10, 200)  # documents differ much more than arms do
    ours, baseline = (hard + shift + rng.normal(0, 0.1, (3, 200)) for shift in (0.5, 0.0))
    apart = compare(ours, baseline, np.ones(200))
    assert apart.low < 0.5 < apart.high
    assert apart.high - apart.low < 0.1
    assert judge(apart) == "better"
    assert judge(apart, lower_is_better=True) == "worse"


def test_seeds_that_disagree_leave_it_undecided() -> None:
    ones = np.ones(100)
    ours, baseline = np.array([[1.0], [3.0]]) * ones, np.array([[2.5], [2.5]]) * ones
    assert judge(compare(ours, baseline, ones)) == "undecided"
    alike = np.array([[0.5], [2.5]]) * ones  # seeds differ, and the arms do so in the same way with each
    assert judge(compare(ours, alike, ones)) == "better"
    assert judge(Estimate(mean=1.0, low=0.1, high=2.0)) == "better"


def test_seconds_add_up_over_windows() -> None:
    rows = [{"step": 10, "step_time_s": 2.0}, {"step": 20, "step_time_s": 1.0}, {"step": 25, "step_time_s": 4.0}]
    assert sum_seconds(rows) == [20.0, 30.0, 50.0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"budget": {"epochs": 3}}, "budget is {'epochs': 3}; expected one of steps, source_tokens, minutes"),
        ({"budget": {"steps": -1}}, "budget.steps is -1"),
        ({"arms": {}}, "arms: expected a mapping"),
        ({"baseline": "vanilla"}, "baseline is 'vanilla'; choose one of the arms blockwise, warm"),
        ({"sedes": [1]}, "sedes: unknown key"),
        ({"seeds": "many"}, "seeds is 'many'"),
        ({"corpus": "papers"}, "corpus is 'papers'; choose needles"),
        ({"corpus_words": [256, 512]}, "corpus_words is for a corpus among multi_key, variables"),
        ({"corpus": "notes", "corpus_documents": 9}, "corpus_documents is for a corpus among"),
        ({"corpus": "variables", "corpus_words": 512}, "corpus_words is 512; expected [SHORTEST, LONGEST], from 160"),
        ({"corpus": "variables", "corpus_words": [512, 256]}, "corpus_words is [512, 256]; expected"),
        ({"corpus": "variables", "corpus_words": [20, 256]}, "corpus_words is [20, 256]; expected"),
        ({"corpus": "variables", "corpus_documents": 0}, "corpus_documents is 0; must be a whole number"),
        ({"arms": {"a": {"start": {"arm": "b", "share": 0.5}}}}, "arms.a.start"),
        ({"arms": {"a": {"start": {"arm": "a", "loss": 0.1}}}}, "and share (0 to 1), or loss and steps"),
        ({"arms": {"a": {"start": {"arm": "a", "loss": 0.1, "steps": 9, "share": 0.5}}}}, "or loss and steps"),
        ({"arms": {"a": {"budget": {"steps": 0}}}}, "arms.a.budget.steps is 0"),
        ({"arms": {"a": {"model_of": "b", "keep": 4}}}, "arms.a is {'keep': 4, 'model_of': 'b'}; expected model_of"),
        ({"arms": {"a": {}, "b": {"keep": 4}}}, "arms.b is {'keep': 4}; expected model_of"),
        ({"arms": {"a": {}, "b": {"model_of": "a", "keep": -4}}}, "and keep (tokens, or a share below 1)"),
        ({"arms": {"a": {}, "b": {"model_of": "a", "keep": 4, "model": {}}}}, "arms.b is"),
    ],
)
def test_mistakes_in_a_study_are_named(tmp_path: Path, change: dict, message: str) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump({**STUDY, **change}))
    with pytest.raises(UserError) as caught:
        load_study(path)
    assert str(path) in str(caught.value)
    assert message in str(caught.value)


def test_an_arm_may_have_a_budget_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    arms = {"long": {}, "untrained": {"budget": {"steps": 1}}}
    path.write_text(
        yaml.safe_dump({"budget": {"steps": 50}, "settings": {"optimizer": {"warmup_steps": 1}}, "arms": arms})
    )
    place = Workplace(study=load_study(path), shards=tmp_path, output=tmp_path)
    assert [plan_run(place, arm, 0).config.train.steps for arm in place.study.arms] == [50, 1]


@pytest.fixture
def beside_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in a folder that has the weights which some studies start from."""
    from transformers import LlamaConfig

    monkeypatch.chdir(tmp_path)
    LlamaConfig(num_hidden_layers=8, vocab_size=300).save_pretrained("SmolLM2-135M-Instruct")


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "studies").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_arm_of_the_committed_studies_is_a_valid_configuration(
    path: Path, tmp_path: Path, beside_weights: None
) -> None:
    from transpooler.trainer.config.load import config_from_dict

    study = load_study(path)
    assert len(study.arms) >= {"positions": 3, "needles_in_sentences": 4, "notes": 4}.get(path.stem, 6)
    for arm in study.arms:
        assert resolve_config(study, arm.name, [arm.settings]) != config_from_dict({})
    check_study(Workplace(study=study, shards=tmp_path, output=tmp_path))
    first, second = (arm.name for arm in study.arms[:2])
    part = load_study(path, arms=f" {second}, {first},{second}", seeds="1, 0,1")
    assert (part.asked, part.seeds, part.arms) == ((second, first), (1, 0), study.arms)


def test_studies_are_found_by_name_from_any_folder(tmp_path: Path, beside_weights: None) -> None:
    names = [name for name in preset_names() if name.startswith("studies/") and name.count("/") == 1]
    assert len(names) >= 6
    for study in map(load_study, names):
        assert study.path.is_absolute()
        for arm in study.arms:  # with all files that the study refers to
            resolve_config(study, arm.name, [arm.settings])
    assert load_study("studies/needles").configs[0].name == "needles.yaml"
    # A file of one's own refers to files beside it, and to presets by name; a file goes before a preset.
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "blockwise.yaml").write_text("model: {d_model: 64}")
    study_file = tmp_path / "mine" / "study.yaml"
    study_file.write_text(yaml.safe_dump({**STUDY, "settings": {}, "configs": ["pyramidion", "blockwise.yaml"]}))
    study = load_study("mine/study.yaml")
    architecture = resolve_config(study, "blockwise", []).seq2seq
    assert (architecture.d_model, len(architecture.pooling)) == (64, len(load_config(["pyramidion"]).model.pooling))
    with pytest.raises(
        UserError, match=r"studies/neddles: cannot read the study: .*; studies by name: .*studies/needles"
    ):
        load_study("studies/neddles")


def test_needles_are_the_same_bytes_again_and_all_facts_are_in_the_document(tmp_path: Path) -> None:
    counts = {"train": 20, "test": 5}
    first, again = (write_needles(tmp_path / name, counts) for name in ("a", "b"))
    assert [path.read_bytes() for path in first.values()] == [path.read_bytes() for path in again.values()]
    words = make_vocabulary()
    known = [*words.fields, *words.filler, *(word for field in words.facts for place in field for word in place)]
    assert len(known) == len(set(known))
    for line in first["test"].read_text().splitlines():
        row = json.loads(line)
        assert 192 <= len(row["article"].split()) <= 256
        assert recall_facts(row["abstract"], row["article"]) == 1.0
        assert len(set(row["abstract"].split())) == FACT_WORDS
        assert not set(words.filler) & set(row["abstract"].split())


def test_facts_are_planted_in_running_text(tmp_path: Path) -> None:
    text = [f"w{number}" for number in range(1000)]
    source = tmp_path / "texts.jsonl"
    source.write_text(json.dumps({"text": " ".join(text)}) + "\n" + json.dumps({"text": "too short"}) + "\n")
    paths = write_needles(tmp_path / "made", {"train": 20, "test": 5}, texts={"train": source, "test": source})
    for line in paths["test"].read_text().splitlines():
        row = json.loads(line)
        rest = [word for word in row["article"].split() if word not in row["abstract"].split()]
        assert 300 <= len(row["article"].split()) <= 400
        assert " ".join(rest) in " ".join(text)
        assert recall_facts(row["abstract"], row["article"]) == 1.0
    source.write_text(json.dumps({"text": "too short"}) + "\n")
    with pytest.raises(UserError, match="no document has 400 words"):
        write_needles(tmp_path / "none", {"test": 5}, texts={"test": source})


def test_recall_counts_whole_facts() -> None:
    _, abstract = make_document(make_vocabulary(), 32, np.random.default_rng(0), lambda count, rng: ["filler"] * count)
    words = abstract.split()
    assert recall_facts(abstract, " ".join(words[4:])) == pytest.approx(3 / 4)
    words[5] = "wrong"
    assert recall_facts(abstract, " ".join(words)) == pytest.approx(3 / 4)


def test_documents_cannot_be_given_to_a_study_that_makes_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "quality", "studies/needles", "--data", "x"]) == 2
    assert "makes its own documents" in capsys.readouterr().err


def test_a_start_may_have_to_learn_its_task_first(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    start = {"arm": "blockwise", "loss": 0.02, "steps": 40}
    path.write_text(yaml.safe_dump({**STUDY, "arms": {"blockwise": {}, "warm": {"start": start}}}))
    place = Workplace(study=load_study(path), shards=tmp_path, output=tmp_path)
    run = plan_run(place, place.study.arms[1], 0)
    assert run.start is not None
    assert [(part.config.train.steps, part.config.train.target_loss) for part in (run.start, run)] == [
        (40, 0.02),
        (12, 0),
    ]
    assert run.start.folder.name == "blockwise-first40-until0.02-seed0"
    _check_learned(_validated(run.start.folder, 0.5, 0.019), 0.02)
    with pytest.raises(UserError, match=r"loss of 0.021, where its arms start at 0.02; give start.steps more"):
        _check_learned(_validated(run.start.folder, 0.5, 0.021), 0.02)


def _validated(run: Path, *losses: float) -> Path:
    """A run folder with these held-out losses."""
    rows = [{"step": step, "split": "validation", "loss": loss} for step, loss in enumerate(losses)]
    run.mkdir(parents=True, exist_ok=True)
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return run


def test_an_arm_can_be_run_without_the_one_it_begins_as(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    arms = STUDY["arms"] | {"blockwise": {"model": {"block_size": 8}, "start": {"arm": "blockwise", "share": 0.5}}}
    path.write_text(yaml.safe_dump({**STUDY, "arms": arms}))
    study = load_study(path, arms="warm")
    arm = study.arms[1]
    assert (study.asked, arm.name) == (("warm",), "warm")
    assert arm.start is not None
    assert (arm.start.arm, arm.start.settings) == ("blockwise", {"model": {"block_size": 8}})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"arms": {"good": {}, "bad": {"model": {"poolin": []}}}}, "arms.bad: model.poolin: unknown key; did you mean"),
        ({"optimizer": {"warmup_steps": 8}}, "arms.warm.start: optimizer.warmup_steps is 8, above train.steps = 6"),
    ],
)
def test_a_mistake_in_any_arm_is_found_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict, message: str
) -> None:
    study, out = tmp_path / "study.yaml", tmp_path / "out"
    settings = STUDY["settings"] | {key: value for key, value in change.items() if key != "arms"}
    study.write_text(yaml.safe_dump(STUDY | {"settings": settings, "arms": change.get("arms", STUDY["arms"])}))
    code, errors = main(["bench", "quality", str(study), "--output", str(out)]), capsys.readouterr().err
    assert (code, f"{study}: {message}" in errors) == (2, True), errors
    assert not out.exists()


def test_shards_are_looked_at_before_anything_is_trained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study, out = tmp_path / "study.yaml", tmp_path / "out"
    study.write_text(yaml.safe_dump(STUDY))
    for shards, message in (
        (tmp_path / "no", f"--shards {tmp_path / 'no'}: no such folder"),
        (tmp_path, "no shards here"),
    ):
        code = main(["bench", "quality", str(study), "--shards", str(shards), "--output", str(out)])
        errors = capsys.readouterr().err
        assert (code, message in errors) == (2, True), errors
        assert not out.exists()


def test_arms_of_unlike_seeds_are_compared_over_those_that_both_have(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump({**STUDY, "arms": {"a": {}, "b": {}, "c": {}}}))
    study = load_study(path)
    results = [_result("a", {0: 1.0, 1: 2.0, 2: 3.0}), _result("b", {2: 2.75, 1: 1.75}), _result("c", {7: 0.1235})]
    rows, each = compare_arms(results, study), list_seeds(results)
    assert rows[1]["loss_less_a"] == rows[1]["loss_less_a_high"] == pytest.approx(-0.25)
    assert "loss_less_a" not in rows[2]
    (table,) = format_arms(rows, study).values()
    assert table[1]["loss less a"] == "-0.250 (-0.250 to -0.250) better"
    assert [row["loss"].split()[0] for row in table] == ["2.000", "2.250", "0.123"]
    assert [(row["arm"], row["seed"], row["loss"], row["steps"]) for row in each][3:5] == [
        ("b", 2, 2.75, 12),
        ("b", 1, 1.75, 12),
    ]
    (lines,) = format_seeds(each).values()
    assert lines[1] == {"arm": "b", "seed 1": "50.0 (1.750)", "seed 2": "50.0 (2.750)"}
    assert "Arms differ in their seeds" in format_notes(study, each)
    assert "Not finished" not in format_notes(study, each)
    assert "Not finished: c." in format_notes(study, each[:-1])


def test_tables_of_rouge_name_the_dialect(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(yaml.safe_dump({**STUDY, "arms": {"a": {}}}))
    study = load_study(tmp_path / "study.yaml")
    result = replace(_result("a", {1: 2.0}), rouge_SN={"rouge1": np.full((1, 5), 0.25)}, shares_SN={})
    result = replace(result, dialects=("rouge-1.5.5",))
    rows, each = compare_arms([result], study), list_seeds([result])
    assert rows[0]["rouge_dialect"] == "rouge-1.5.5"
    assert next(iter(format_arms(rows, study))).endswith("; ROUGE as rouge-1.5.5")
    assert list(format_seeds(each)) == ["each seed: ROUGE-1 (loss); ROUGE as rouge-1.5.5"]


def test_arms_that_differ_in_what_they_keep_are_drawn_over_it(tmp_path: Path) -> None:
    score = {"facts": 50.0, "facts_low": 40.0, "facts_high": 60.0}
    kept = {"halving_4x": 64, "halving_8x": 32, "halving_16x": 16, "mean_4x": 64, "mean_8x": 32}
    rows = [{"arm": arm, "kept_tokens": tokens} | score for arm, tokens in kept.items()]
    path = tmp_path / "budgets.png"
    assert write_budget_plot(rows, path, "title") == [path]
    assert path.stat().st_size > 5_000
    assert write_budget_plot(rows[2:], tmp_path / "none.png", "title") == []  # no family of three
    assert not (tmp_path / "none.png").exists()


def test_a_broken_cell_is_named(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(STUDY))
    place = Workplace(study=load_study(tmp_path / "study.yaml"), shards=tmp_path, output=tmp_path)
    run = plan_run(place, place.study.arms[1], 3)
    path = tmp_path / "cells" / "warm-seed3.json"
    assert place.cell_file(run) == path
    assert find_cell(place, run) is None
    path.parent.mkdir()
    path.write_text('{"settings": []}')
    with pytest.raises(UserError, match=r"warm-seed3\.json: is no cell of a study; remove it"):
        find_cell(place, run)
    (tmp_path / "runs" / "warm-seed12").mkdir(parents=True)
    (tmp_path / "cells" / "warm-first6-seed5.json").write_text("{}")
    assert place.find_seeds(place.study.arms[1]) == [3, 12]


def test_settings_agree_in_what_both_know() -> None:
    old = [{"model": {"layers": 2, "pooling": [{"length": 8}]}}]
    assert agree(old, [{"model": {"layers": 2, "pooling": [{"length": 8, "operator": "hard"}], "new": 1}}])
    assert not agree(old, [{"model": {"layers": 2, "pooling": [{"length": 9}]}}])
    assert not agree(old, [{"model": {"layers": 2, "pooling": []}}])
    assert not agree(old, [*old, *old])


def _result(arm: str, losses: dict[int, float]) -> ArmResult:
    values_SN = np.array(list(losses.values()))[:, None] * np.ones(5)
    return ArmResult(
        arm=arm,
        loss_SN=values_SN,
        shuffled_SN=values_SN + 1,
        rouge_SN={},
        tokens_N=np.ones(5),
        shares_SN={"facts": np.full(values_SN.shape, 0.5)},
        seeds=tuple(losses),
        facts_S=[{"steps": 12, "train_minutes": 1.0} for _ in losses],
    )


def test_a_table_without_any_run_is_named(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(STUDY))
    with pytest.raises(UserError, match=r"out: no run of .*study\.yaml for a table; finish one"):
        write_outputs(load_study(tmp_path / "study.yaml"), {}, tmp_path / "out")
