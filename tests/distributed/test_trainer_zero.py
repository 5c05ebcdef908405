"""ZeRO on two real ranks against one process and plain AdamW."""

import subprocess
from pathlib import Path

import torch
from torch.nn.utils import clip_grad_norm_

from data_pipeline.loader import Loader
from data_pipeline.tokenizer import load_tokenizer
from trainer.config import Config
from trainer.config_loader import load_config
from trainer.models import build_model
from trainer.optimizer import learning_rate, parameter_groups, set_learning_rate

STEPS = 4
STAGES = ((0, "fp32"), (1, "fp32"), (2, "fp32"), (3, "fp32"), (1, "bf16"), (2, "bf16"), (3, "bf16"))
# eps far above rounding errors of the gradients: Adam would turn them into steps of full size.
SETTINGS = [f"train.steps={STEPS}", "model.dropout=0", "optimizer.eps=0.001", "optimizer.max_grad_norm=0.5"]

WORKER = """
import sys
from trainer.config_loader import load_config
from trainer.setup import prepare_job
from trainer.step import held_out_loss, train_step

for settings in sys.argv[1].split("|"):
    config = load_config([], settings.split(";"))
    job = prepare_job(config)
    for step, _ in zip(job.loader.steps(0), range(config.train.steps)):
        result = train_step(job, step, stop=False)
        assert not result.skipped
        job.state.step += 1
    loss = held_out_loss(job)
    job.save()
    if job.rank == 0:
        (job.run / "losses.txt").write_text(f"{result.loss_sum / result.target_tokens} {loss[0]}")
"""


def test_every_stage_equals_one_process_with_adamw(tiny_settings, ranks, tmp_path):
    """Batches of 5 over 2 ranks and micro batches of 2: uneven ranks, accumulation and dummies all take part."""
    runs = {kind: tmp_path / f"zero{kind[0]}_{kind[1]}" for kind in STAGES}
    each = [
        [*tiny_settings, *SETTINGS, f"run={run}", f"engine.zero_stage={stage}", f"engine.precision={precision}"]
        for (stage, precision), run in runs.items()
    ]
    processes = ranks(2, ["-c", WORKER, "|".join(";".join(settings) for settings in each)])
    _finished(processes)
    expected, losses = _plain_adamw(load_config([], each[0]))
    for (stage, precision), run in runs.items():
        loss, held_out = map(float, (run / "losses.txt").read_text().split())
        tolerance = 1e-5 if precision == "fp32" else 0.05
        assert abs(loss - losses[0]) < tolerance, (stage, precision)
        assert abs(held_out - losses[1]) < tolerance, (stage, precision)
        _assert_weights(run, expected, tolerance=2e-6 if precision == "fp32" else 5e-3)


def _finished(processes: list[subprocess.Popen]) -> None:
    for process in processes:
        _, errors = process.communicate(timeout=240)
        assert process.returncode == 0, errors[-3000:]


def _assert_weights(run: Path, expected: dict[str, torch.Tensor], tolerance: float) -> None:
    from trainer.export import consolidated_weights

    weights = consolidated_weights(run, STEPS)
    assert set(weights) == set(expected)
    for name, value in expected.items():
        assert weights[name].dtype == torch.float32
        torch.testing.assert_close(weights[name], value, atol=tolerance, rtol=0, msg=f"{run.name}: {name}")


def _plain_adamw(config: Config) -> tuple[dict[str, torch.Tensor], tuple[float, float]]:
    """Weights, last training loss and held-out loss of the textbook loop: one process, one batch, no DeepSpeed."""
    model = build_model(config, load_tokenizer(Path(config.data.shards) / "tokenizer"))
    settings = config.optimizer
    optimizer = torch.optim.AdamW(parameter_groups(model, settings), betas=settings.betas, eps=settings.eps)

    def batches(split: str) -> Loader:
        return Loader(config.data, split=split, seed=config.seed, rank=0, world_size=1, micro_batch_size=5)

    for step, number in zip(batches("train").steps(0), range(STEPS), strict=False):
        (batch,) = step.micro_batches
        set_learning_rate(optimizer.param_groups, learning_rate(number, settings, STEPS))
        loss = model(**batch).loss
        optimizer.zero_grad()
        loss.backward()
        clip_grad_norm_(model.parameters(), settings.max_grad_norm)
        optimizer.step()
    (held_out,) = (step.micro_batches[0] for step in batches("validation").evaluation_steps(None))
    with torch.no_grad():
        return model.state_dict(), (loss.item(), model.eval()(**held_out).loss.item())
