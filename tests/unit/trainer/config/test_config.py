"""What the configuration refuses, and how it says so."""

import json

import pytest

from tests.run_folders import make_run
from transpooler.common import UserError
from transpooler.launch.cli import main
from transpooler.trainer.config import Config, load_config, save_config
from transpooler.trainer.config.load import load_saved_config
from transpooler.trainer.config.stages import stage_of


def test_configs_round_trip_and_bad_values_are_listed_together():
    config = load_config(["configs/deep_pyramidion.yaml"], ["train.steps=9000"])
    assert isinstance(config, Config)
    assert json.dumps(config.model.pooling[0].length) == "4096"
    with pytest.raises(UserError) as error:
        load_config([], ["engine.zero_stage=7", "train.steps=0"])
    assert "engine.zero_stage is 7; DeepSpeed knows 0, 1, 2 and 3" in str(error.value)
    assert "train.steps is 0" in str(error.value)


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        (
            "engine.offload_optimizer=cpu engine.zero_stage=0",
            "engine.offload_optimizer is 'cpu', which needs engine.zero",
        ),
        ("engine.offload_parameters=cpu engine.zero_stage=2", "needs engine.zero_stage=3, not 2"),
        ("engine.offload_parameters=nvme engine.zero_stage=3", "engine.nvme_path is null"),
        ("engine.checkpoint_in_cpu=true", "needs engine.activation_checkpointing=deepspeed"),
        ("engine.compile=true engine.zero_stage=3", "engine.compile is true, but the weights"),
        (
            "engine.compile=true engine.activation_checkpointing=torch",
            "compile is true, but torch cannot compile checkpointed",
        ),
        ("optimizer.name=muon", "optimizer.max_grad_norm is 1.0, but with optimizer.name=muon"),
        ("optimizer.name=muon optimizer.max_grad_norm=0 engine.zero_stage=0", "which works under ZeRO only"),
        ("optimizer.name=adafactor", "optimizer.name is 'adafactor'; choose one of adamw, fused_adamw, muon"),
        ("optimizer.schedule=wsd train.steps=6000", "optimizer.decay_steps is 30000; with warmup_steps = 5000"),
        ("train.best_metric=rouge1", "which needs train.generate_documents above 0"),
        ("train.export_best=true", "needs train.keep_best_checkpoint=true"),
        ("train.patience=3 train.evaluate_every_steps=0", "need evaluations"),
        ("train.patience=3 data.validation_split=null", "data.validation_split is null, but train.patience"),
        ("train.target_loss=0.1 data.validation_split=null", "data.validation_split is null, but train.target_loss"),
        ("train.target_loss=0.1 train.generate_documents=2 train.best_metric=rouge1", "needs train.best_metric=loss"),
        ("train.generate_documents=9 data.objective=denoise", "needs data.objective=summarize"),
        *(
            (f"engine.context_parallel_size=2 {settings}", problem)
            for settings, problem in (
                ("model.pooling=[]", "model.pooling is empty, but 2 ranks share documents up to the last pooling"),
                ("model.block_size=null", "model.block_size is null, but 2 ranks share documents by blocks"),
                ("model.stagger_blocks=true", "model.stagger_blocks is true, but 2 ranks share documents by blocks"),
                (
                    'model.pooling=[{"after_layer":6,"length":8,"operator":"iterative_softmax"}]',
                    "model.pooling[0].operator is 'iterative_softmax', whose slots take from every token",
                ),
                ("engine.compile=true", "engine.compile is true, but what engine.context_parallel_size ranks exchange"),
            )
        ),
        (
            "engine.activation_checkpointing=chunks engine.zero_stage=3",
            "engine.activation_checkpointing is 'chunks', but ranks fetch the weights of engine.zero_stage=3 together",
        ),
        (
            "model.positions=learned model.max_positions=100",
            "data.max_source_tokens is 8192, above model.max_positions",
        ),
    ],
)
def test_settings_that_contradict_each_other(settings, problem):
    with pytest.raises(UserError) as error:
        load_config([], settings.split())
    assert problem in str(error.value)


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        (
            ["train.steps=9000", "train.stages=[{steps: 10}, {steps: 20}]", "optimizer.warmup_steps=1"],
            "train.steps is 9000, but the steps of train.stages add up to 30; use 30",
        ),
        (
            ["train.stages=[{}, {steps: 20}]", "optimizer.warmup_steps=0"],
            "train.stages[0].steps is null; only the last stage may leave it out",
        ),
        (
            ["train.steps=20", "train.stages=[{steps: 20}, {}]", "optimizer.warmup_steps=0"],
            "train.steps is 20, but the stages before the last one take 20; use more than that",
        ),
        (
            ["train.stages=[{steps: 100}, {}]"],
            "optimizer.warmup_steps is 5000, above train.stages[0].steps = 100: the peak is never reached",
        ),
        (
            ["optimizer.groups=[{match: '*'}]"],
            "optimizer.groups[0].match is '*', but the group sets nothing; give learning_rate or weight_decay",
        ),
        (
            ["train.stages=[{groups: [{learning_rate: 1.0}]}]"],
            "train.stages[0].groups[0].match is empty; give a pattern of parameters' names, such as 'model.encoder.*'",
        ),
    ],
)
def test_stages_and_groups_that_cannot_be(settings, problem):
    with pytest.raises(UserError) as error:
        load_config([], settings)
    assert str(error.value) == problem


def test_a_stage_takes_from_the_run_what_it_leaves_out():
    group = "{match: '*.poolers.*', learning_rate: 0.5}"
    settings = ["train.steps=30", "train.freeze=[a.*]", f"optimizer={{warmup_steps: 5, groups: [{group}]}}"]
    stages = "[{steps: 10, learning_rate: 0.25, groups: []}, {freeze: [], warmup_steps: 0}]"
    first, second = load_config([], [*settings, f"train.stages={stages}"]).stages
    assert (first.first, first.last, second.first, second.last) == (0, 10, 10, 30)
    assert (first.freeze, second.freeze) == (("a.*",), ())
    assert (first.optimizer.learning_rate, second.optimizer.learning_rate) == (0.25, 5e-4)
    assert (first.optimizer.warmup_steps, second.optimizer.warmup_steps) == (5, 0)
    assert (len(first.optimizer.groups), len(second.optimizer.groups)) == (0, 1)
    assert [stage_of((first, second), step).number for step in (0, 9, 10, 29, 30)] == [0, 0, 1, 1, 1]
    (only,) = load_config([], settings).stages
    assert (only.first, only.last, only.freeze) == (0, 30, ("a.*",))


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        (
            "guards.watchdog_timeout_s=1800",
            "guards.watchdog_timeout_s is 1800, not below engine.collective_timeout_s = 1800, so the watchdog could "
            "never name the rank that hangs; lower it (0 = off), or raise engine.collective_timeout_s",
        ),
        (
            "cluster.hang_timeout_s=1800",
            "cluster.hang_timeout_s is 1800, not above engine.collective_timeout_s = 1800, so no rank could tell what "
            "it waited for; raise it (0 = never), or lower engine.collective_timeout_s",
        ),
    ],
)
def test_who_knows_more_about_a_hang_speaks_first(settings, problem):
    with pytest.raises(UserError) as error:
        load_config([], settings.split())
    assert str(error.value) == problem


def test_a_timeout_that_is_off_has_no_place_in_the_order():
    load_config([], ["guards.watchdog_timeout_s=0", "engine.collective_timeout_s=15"])
    load_config([], ["cluster.hang_timeout_s=0", "engine.collective_timeout_s=90000"])


def test_a_value_that_breaks_the_rule_of_its_field_is_reported_once():
    with pytest.raises(UserError) as error:
        load_config([], ["engine.offload_optimizer=disk", "optimizer.name=adam", "train.best_metric=bleu"])
    assert str(error.value).splitlines() == [
        "optimizer.name is 'adam'; choose one of adamw, fused_adamw, muon",
        "engine.offload_optimizer is 'disk'; choose one of none, cpu, nvme",
        "train.best_metric is 'bleu'; choose one of loss, rouge1, rouge2, rougeL, rougeLsum",
    ]


def test_a_saved_configuration_of_another_version(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text('engine: {zero_stage: 2, "odd: key": 1}\ndata: {mixture: [{name: a, shards: s, share: 2}]}\n')
    config, unknown = load_saved_config(path)
    assert config.engine.zero_stage == 2
    assert config.data.mixture[0].name == "a"
    assert unknown == ["engine.odd: key", "data.mixture[0].share"]


def test_a_run_of_another_version_is_named_wherever_it_is_read(tmp_path, capsys):
    run = make_run(tmp_path / "run")
    path = run / "config.yaml"
    path.write_text(
        path.read_text().replace("data:\n", "data:\n  pace: 3\n").replace("train:\n", "train:\n  mood: 1\n")
    )
    (run / "export").mkdir()
    (run / "export" / "config.json").write_text('{"model_type": "transpooler"}')
    says = f"error: {path}: has keys that this version does not know (data.pace, train.mood); use the version"
    commands = ("train RUN", "evaluate RUN", "launch local RUN", "prepare RUN", "order RUN", "export RUN --output OUT")
    for command in commands:
        assert main(command.replace("RUN", str(run)).replace("OUT", str(tmp_path / "out")).split()) == 2, command
        err = capsys.readouterr().err
        assert (says in err, err.count("\n")) == (True, 1), (command, err)
    assert main(["report", str(run)]) == 0  # shows what it knows, and says so
    assert "left out: data.pace, train.mood" in capsys.readouterr().err
    (tmp_path / "mine").mkdir()
    mine = tmp_path / "mine" / "config.yaml"
    mine.write_text("train: {stepz: 1}")  # a person's: no version wrote it
    with pytest.raises(UserError, match=r"train.stepz: unknown key; did you mean train.steps"):
        load_config([mine])


def test_a_key_of_an_earlier_version_that_had_no_effect_is_dropped_from_a_file_alone(tmp_path):
    path = tmp_path / "config.yaml"
    save_config(Config(), path)
    path.write_text(path.read_text().replace("engine:\n", "engine:\n  partition_activations: true\n"))
    for run in (path, tmp_path):
        assert load_config([run], ["train.log_every_steps=7"]).train.log_every_steps == 7
    assert load_saved_config(path) == (Config(), [])
    path.write_text("engine: null\n")
    with pytest.raises(UserError, match=r"engine is null; must be a mapping"):
        load_config([path])
    with pytest.raises(UserError, match=r"engine.partition_activations: unknown key"):
        load_config([], ["engine.partition_activations=true"])


def test_a_saved_configuration_that_is_wrong_is_named_with_its_keys(tmp_path):
    path = tmp_path / "config.yaml"
    save_config(Config(), path)
    path.write_text(path.read_text().replace("zero_stage: 1", "zero_stage: 7").replace("seed: 0", "seed: x"))
    with pytest.raises(UserError) as error:
        load_saved_config(path)
    assert str(error.value).startswith(f"{path}: seed is 'x'; ")
    path.write_text(path.read_text().replace("seed: x", "seed: 0"))
    with pytest.raises(UserError) as error:
        load_saved_config(path)
    assert str(error.value) == f"{path}: engine.zero_stage is 7; DeepSpeed knows 0, 1, 2 and 3"
