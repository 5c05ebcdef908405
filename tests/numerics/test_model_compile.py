"""torch.compile of the operator and the whole model: one graph, the numbers of eager, training steps included.

`aot_eager` traces what inductor would compile, in seconds; inductor, with a C++ compiler, takes minutes.
"""

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.unit.model.test_model import SETTINGS, build
from transpooler.model.ops.soft_topk import soft_topk

INDUCTOR = pytest.param("inductor", marks=pytest.mark.slow)
STACKED = ("paper", "modern_normed", "staggered")
"""Settings of which two layers are compiled, and all stages of pooling; what the others add is within a layer."""
SHAPES = [((39, 25, 3), 7), ((45, 31, 9), 5), ((57, 17, 5), 9)]
"""Lengths of the documents and of the targets of three steps. Longest ones that are multiples of the block, or need
another number of rounds of halving, have graphs of their own."""


def sizes_of(name: str) -> dict[str, Any]:
    """SETTINGS[name] with as few layers as show what they are."""
    settings = SETTINGS[name]
    if name in STACKED:
        return settings | {"encoder_layers": 2, "decoder_layers": 1}
    return settings | {"encoder_layers": 1, "decoder_layers": 1, "pooling": settings.get("pooling", [])[:1]}


def batch_of(lengths: tuple[int, ...], num_labels: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    ids = torch.randint(6, 300, mask.shape, generator=generator)
    labels = torch.randint(6, 300, (len(lengths), num_labels), generator=generator)
    return {"input_ids": torch.where(mask > 0, ids, 1), "attention_mask": mask, "labels": labels}


def train(model: Any) -> tuple[list[float], list[Tensor]]:
    """A few steps of AdamW: losses and weights. A large eps, or rounding errors would be steps of full size."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, eps=1e-2)
    losses = []
    for lengths, num_labels in SHAPES:
        loss = model(**batch_of(lengths, num_labels)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses, [parameter.detach().clone() for parameter in model.parameters()]


@pytest.mark.parametrize(("backend", "name"), [
    *(("aot_eager", name) for name in SETTINGS if name != "modern"),  # see the next
    pytest.param("inductor", "modern", marks=pytest.mark.slow),
])  # fmt: skip
def test_training_compiles_into_one_graph_whatever_the_lengths(backend, name):
    settings = sizes_of(name)
    losses, weights = train(build(**settings).train())
    torch._dynamo.reset()
    model = build(**settings).train()
    model.compile(backend=backend, fullgraph=True, dynamic=True)  # as trainer/engine/engine.py does, and no graph break
    with torch._dynamo.config.patch(error_on_recompile=True):
        compiled_losses, compiled_weights = train(model)
    assert compiled_losses == pytest.approx(losses, abs=2e-5)
    for key, expected, got in zip(dict(model.named_parameters()), weights, compiled_weights, strict=True):
        torch.testing.assert_close(got, expected, atol=2e-5, rtol=0, msg=key)


@pytest.mark.parametrize("kernel", ["cpp", "torch"])
@pytest.mark.parametrize("backend", ["aot_eager", INDUCTOR])
def test_the_operator_fuses_with_what_is_around_it(backend, kernel):
    generator = torch.Generator().manual_seed(0)
    given = torch.randn(2, 70, 8, generator=generator), torch.randn(2, 70, generator=generator)

    def around(x: Tensor, logits: Tensor) -> Tensor:
        pooled = soft_topk(x.tanh(), logits.sigmoid() + 1e-5, 8, backend=kernel)
        return torch.nn.functional.gelu(pooled.embeddings * pooled.scores[..., None]).sum(1)

    results = []
    for run in (around, torch.compile(around, backend=backend, fullgraph=True)):
        x, logits = (part.clone().requires_grad_() for part in given)
        out = run(x, logits)
        results.append([out.detach(), *torch.autograd.grad(out.sum(), (x, logits))])
    for plain, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, plain)


@pytest.mark.parametrize("settings", SETTINGS)
def test_exported_programs_compute_the_same(settings):
    model = build(**sizes_of(settings))
    batch = batch_of(*SHAPES[0])
    batch["decoder_input_ids"] = batch.pop("labels")
    program = torch.export.export(model, (), batch | {"use_cache": False})
    torch.testing.assert_close(program.module()(**batch, use_cache=False).logits, model(**batch).logits)
