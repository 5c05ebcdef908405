"""A model that was prepared for inference writes what it wrote before, and is saved as it was."""

import copy
import logging
from pathlib import Path
from typing import Any

import pytest
import torch

import transpooler
from tests.unit.model.compressor.test_compressor import FAMILIES, compressor
from transpooler.model import TranspoolerConfig, TranspoolerForConditionalGeneration
from transpooler.model.compressor.config import CompressorConfig
from transpooler.model.compressor.modeling import CompressorForConditionalGeneration
from transpooler.model.ops.decoding import attention, kernels, packed_linear, prepare
from transpooler.model.ops.decoding.packed_linear import PackedLinear

prepare_for_inference = transpooler.prepare_for_inference
SIZES: dict[str, Any] = {"d_model": 64, "num_heads": 4, "ffn_dim": 96, "block_size": 8, "vocab_size": 60}
GENERATION: dict[str, Any] = {"max_new_tokens": 12, "min_new_tokens": 12, "do_sample": False}
KINDS = ("tied", "untied", "relative", "wide", *FAMILIES)


def make(kind: str) -> Any:
    if kind in FAMILIES:
        return compressor(kind, pooling=[{"after_layer": 1, "ratio": 0.5}])
    torch.manual_seed(0)
    if kind == "wide":
        parts = FAMILIES["llama"].to_dict() | {"head_dim": 16}
        pooling = [{"after_layer": 1, "ratio": 0.5}]
        return CompressorForConditionalGeneration(CompressorConfig(encoder=parts, reader=parts, pooling=pooling)).eval()
    settings: dict[str, Any] = {"tied_head": kind != "untied", "pooling": [{"after_layer": 2, "length": 12}]}
    if kind == "relative":
        settings |= {"positions": "relative", "kv_heads": 2}
    # Weights this large make documents and beams differ.
    config = TranspoolerConfig(**SIZES, encoder_layers=2, decoder_layers=2, init_std=0.5, **settings)
    return TranspoolerForConditionalGeneration(config).eval()


def batch() -> dict[str, torch.Tensor]:
    ids = torch.randint(3, 60, (3, 30), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, 11:], mask[2, 4:] = 0, 0
    return {"input_ids": ids, "attention_mask": mask}


@pytest.fixture
def counted(monkeypatch):
    """How often each kernel ran."""
    counts = {"linear": 0, "attention": 0}

    def counting(name, function):
        def run(*args):
            counts[name] += 1
            return function(*args)

        return run

    monkeypatch.setattr(packed_linear, "packed_linear", counting("linear", kernels.packed_linear))
    monkeypatch.setattr(attention, "attend_few", counting("attention", kernels.attend_few))
    return counts


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_beams", [1, 4])
def test_a_prepared_model_writes_the_same_tokens(kind, num_beams, counted):
    model, documents = make(kind), batch()
    before = model.generate(**documents, num_beams=num_beams, **GENERATION)
    assert counted == {"linear": 0, "attention": 0}
    assert prepare_for_inference(model) is model
    assert torch.equal(model.generate(**documents, num_beams=num_beams, **GENERATION), before)
    assert counted["linear"] > 12
    # Heads of 8 features (the readers') are too narrow for the kernel.
    assert (counted["attention"] > 12) == (kind not in FAMILIES)
    assert len({tuple(row) for row in before.tolist()}) > 1


@pytest.mark.parametrize("kind", ["tied", "untied", "llama"])
def test_what_is_saved_stays_as_it_was(kind, tmp_path):
    model = make(kind)
    before = copy.deepcopy(model.state_dict())
    model.save_pretrained(tmp_path / "before")
    prepare_for_inference(model, "int8")
    model.save_pretrained(tmp_path / "after")
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert _files(tmp_path / "after") == _files(tmp_path / "before")


def _files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("kind", ["tied", "wide"])
def test_every_part_attends_through_the_kernel_and_nothing_is_said(kind, caplog):
    logging.getLogger("transformers").addHandler(caplog.handler)
    try:
        model = prepare_for_inference(make(kind))
    finally:
        logging.getLogger("transformers").removeHandler(caplog.handler)
    assert not caplog.records
    assert {part.config._attn_implementation for part in model.modules() if hasattr(part, "config")} == {attention.NAME}


def test_the_encoder_and_the_embeddings_stay_as_they_are():
    model = prepare_for_inference(make("tied"))
    packed = [name for name, module in model.named_modules() if isinstance(module, PackedLinear)]
    assert "lm_head" in packed
    assert not [name for name in packed if "encoder" in name.split(".")]
    assert len(packed) == 1 + 2 * 10  # the head; of each layer twice four projections, and two maps
    assert model.lm_head.weight is model.model.shared.weight


@pytest.mark.parametrize("kind", ["tied", "llama"])
@pytest.mark.parametrize(("precision", "most"), [("fp32", 1e-5), ("bf16", 0.02), ("int8", 0.05)])
def test_logits_are_within_the_stated_error(kind, precision, most):
    """Greatest error of the logits over their standard deviation (docs/summarizing.md)."""
    model, documents = make(kind), batch()
    labels = documents["input_ids"][:, :9]
    with torch.inference_mode():
        before = model(**documents, labels=labels).logits
        after = prepare_for_inference(model, precision)(**documents, labels=labels).logits
    error = (after - before).abs().mean() / before.std()
    assert error < most
    assert (error > 1e-4) == (precision != "fp32")


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda model: model.train(), "train"),
        (lambda model: model.to(torch.float64), "be moved or converted"),
        (lambda model: model.load_state_dict(model.state_dict()), "take other weights"),
    ],
)
def test_whatever_would_change_the_weights_is_refused(change, what):
    model = prepare_for_inference(make("tied"))
    with pytest.raises(RuntimeError, match=f"^a model that was prepared for inference cannot {what}: load it again$"):
        change(model)


def test_a_prepared_model_has_no_gradient():
    model, documents = prepare_for_inference(make("tied")), batch()
    loss = model(**documents, labels=documents["input_ids"][:, :5]).loss
    assert not loss.requires_grad
    embeddings = torch.randn(1, 5, 64, requires_grad=True)
    with pytest.raises(RuntimeError, match=r"^a model that was prepared for inference cannot give gradients"):
        model.model.decoder(inputs_embeds=embeddings, encoder_hidden_states=torch.randn(1, 4, 64))


def test_it_can_be_prepared_again_with_another_precision():
    model, documents = make("tied"), batch()
    before = model.generate(**documents, **GENERATION)
    prepare_for_inference(prepare_for_inference(model, "int8"), "fp32")
    assert torch.equal(model.generate(**documents, **GENERATION), before)


def test_an_unknown_precision_is_named():
    with pytest.raises(ValueError, match=r"^precision 'fp16' is unknown; choose among fp32, bf16, int8$"):
        prepare_for_inference(make("tied"), "fp16")


def test_without_a_compiler_the_model_stays_as_it_is_and_rounding_is_refused(monkeypatch):
    def fail() -> None:
        raise kernels.NoKernelsError("no C++ kernels for decoding (no g++)")

    monkeypatch.setattr(prepare, "extension", fail)
    model = make("tied")
    with pytest.warns(UserWarning, match=r"no g.*plain torch serves"):
        prepare_for_inference(model)
    assert not [module for module in model.modules() if isinstance(module, PackedLinear)]
    with pytest.raises(RuntimeError, match=r"no C.* kernels"):
        prepare_for_inference(model, "bf16")
