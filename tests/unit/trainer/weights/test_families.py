"""Each family of pretrained encoder-decoders is taken over exactly: names, logits, loss, greedy and beam output."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from tests.stock_models import KIN, MODELS, stock
from transpooler.common import UserError
from transpooler.data_pipeline.tokenizer import load_tokenizer
from transpooler.trainer.config import load_config
from transpooler.trainer.weights.export import export_model
from transpooler.trainer.weights.models import build_model, load_model
from transpooler.trainer.weights.warm_start import start_from


@pytest.fixture
def tokenizer(tiny_settings):
    return load_tokenizer(Path(load_config([], tiny_settings).data.shards) / "tokenizer")


def settings_from(tiny_settings: list[str], folder: Path, *more: str) -> list[str]:
    """A run that writes nothing about its model but blocks and pooling."""
    kept = [each for each in tiny_settings if not each.startswith("model")]
    return [*kept, f"train.init_from={folder}", "model={block_size: null, pooling: []}", *more]


def started(settings: list[str], tokenizer) -> tuple[Any, Any]:
    config = load_config([], settings)
    model: Any = build_model(config, tokenizer)
    assert config.train.init_from is not None
    start_from(model, config.train.init_from, config, tokenizer)
    return config, model.eval()


@pytest.mark.parametrize("name", MODELS)
def test_logits_loss_and_texts_are_those_of_transformers(name, tiny_settings, tokenizer, tmp_path, capsys):
    theirs = stock(name, tokenizer, tmp_path / name)
    config, ours = started(settings_from(tiny_settings, tmp_path / name), tokenizer)
    ids = torch.randint(6, len(tokenizer), (3, 40), generator=torch.Generator().manual_seed(0))
    mask = (torch.arange(40) < torch.tensor([[40], [25], [7]])).long()
    given = {"input_ids": ids, "attention_mask": mask}
    with torch.no_grad():
        expected, found = (model(**given, decoder_input_ids=ids[:, :9]).logits for model in (theirs, ours))
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
        assert found.std() > 0.1
        labels = ids[:, 9:20].contiguous()
        # mBART and PLBART would begin with the labels' last token, which in their data is a language.
        both = {**given, "labels": labels, "decoder_input_ids": ours.prepare_decoder_input_ids_from_labels(labels)}
        torch.testing.assert_close(ours(**both).loss, theirs(**both).loss)
    for beams in (1, 3):
        search = {"num_beams": beams, "max_new_tokens": 12, "do_sample": False, "min_new_tokens": 4}
        forced = {name: getattr(config.generation, name) for name in ("forced_bos_token_id", "forced_eos_token_id")}
        written: Any = ours.generate(**given, **search, **forced)
        assert torch.equal(written, theirs.generate(**given, **search)), beams
    lines = [line for line in capsys.readouterr().err.splitlines() if "init_from" in line]
    said = [line.split(f"train.init_from {tmp_path / name}: ")[1] for line in lines]
    if name == "led":
        assert all("_global" in part for part in said[0].split(", "))
        assert "equal up to 49 tokens" in said[1]
    elif name == "longt5":
        assert "equal up to 128 tokens" in said[-1]
    else:
        assert said == ["every tensor found its place"]


def test_local_weights_of_pegasus_x_are_taken_and_the_rest_named(tiny_settings, tokenizer, tmp_path, capsys):
    values = KIN | {"scale_embedding": True, "num_global_tokens": 4, "block_size": 16}
    special = {f"{role}_token_id": getattr(tokenizer, f"{role}_token_id") for role in ("bos", "pad", "eos")}
    config = transformers.PegasusXConfig(vocab_size=len(tokenizer), **values, **special)
    theirs = transformers.PegasusXForConditionalGeneration(config)
    theirs.save_pretrained(tmp_path / "x")
    tokenizer.save_pretrained(tmp_path / "x")
    _, ours = started(settings_from(tiny_settings, tmp_path / "x"), tokenizer)
    for name in ("self_attn.k_proj", "fc1"):
        stored: Any = theirs.get_submodule(f"model.encoder.layers.1.{name}").weight
        assert any(torch.equal(stored, each) for each in ours.parameters()), name
    said = [line for line in capsys.readouterr().err.splitlines() if "init_from" in line]
    for name in ("global_self_attn_layer_norm", "model.encoder.embed_global.weight"):
        assert name in said[0]
    assert said[0].endswith("are left out: no counterpart")
    assert "its 4 global tokens are left out, and its staggered blocks unless model.stagger_blocks is" in said[1]


@pytest.mark.parametrize("name", ["bart", "marian", "umt5", "flan_t5"])
def test_a_pooling_model_of_a_family_trains_and_its_export_generates_the_same(name, tiny_settings, tokenizer, tmp_path):
    """Tied and untied heads, biases of logits, relative positions of winners, tables of positions that grow."""
    from transformers import AutoModelForSeq2SeqLM

    stock(name, tokenizer, tmp_path / name)
    pooling = "[{after_layer: 1, length: 12}, {after_layer: 2, length: 6}]"
    more = [f"model={{block_size: 16, pooling: {pooling}, scorer_init_std: 1.0}}", "generation.max_new_tokens=6"]
    config, model = started(settings_from(tiny_settings, tmp_path / name, *more), tokenizer)
    ids = torch.randint(6, len(tokenizer), (2, 40), generator=torch.Generator().manual_seed(1))
    mask = (torch.arange(40) < torch.tensor([[40], [23]])).long()
    model.train()(input_ids=ids, attention_mask=mask, labels=ids[:, :5].contiguous()).loss.backward()
    without = [key for key, item in model.named_parameters() if item.grad is None]
    assert without == []
    alone = model.eval()(input_ids=ids[1:, :23], decoder_input_ids=ids[1:, :5]).logits
    together = model(input_ids=ids, attention_mask=mask, decoder_input_ids=ids[:, :5]).logits[1:]
    torch.testing.assert_close(alone, together, atol=1e-5, rtol=1e-5)
    export_model(model, tokenizer, tmp_path / "export", config, step=1)
    written = model.generate(ids, attention_mask=mask, num_beams=3, max_new_tokens=6)
    for loaded in (
        load_model(tmp_path / "export")[0],
        AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "export", trust_remote_code=True),
    ):
        again: Any = loaded.eval()
        assert torch.equal(again.generate(ids, attention_mask=mask, num_beams=3, max_new_tokens=6), written)
        tied = again.lm_head.weight is again.get_input_embeddings().weight
        assert tied == config.seq2seq.tied_head == (name != "flan_t5")
        assert again.config.decoder_start_token_id == config.seq2seq.decoder_start_token_id


def test_what_contradicts_the_weights_is_refused_in_one_line(tiny_settings, tokenizer, tmp_path):
    folder = tmp_path / "t5"
    stock("t5", tokenizer, folder)

    def refused(*more: str) -> str:
        with pytest.raises(UserError) as caught:
            started(settings_from(tiny_settings, folder, *more), tokenizer)
        (line,) = str(caught.value).splitlines()
        return line

    wrong = refused("model.ffn_dim=32", "model.norm_kind=layer")
    assert "model.ffn_dim is 32, in the weights 48; model.norm_kind is 'layer', in the weights 'rms'" in wrong
    weights, values = load_file(folder / "model.safetensors"), json.loads((folder / "config.json").read_text())
    short = {key: item for key, item in weights.items() if "block.1.layer.1" not in key}
    save_file(short, folder / "model.safetensors", metadata={"format": "pt"})
    line = refused()
    assert re.search(r"lacks model\.encoder\.layers\.1\.\S+, .* more; download or save it again", line), line
    (folder / "config.json").write_text(json.dumps(values | {"feed_forward_proj": "gated-relu"}))
    assert "holds a 't5' model that cannot be taken over" in refused()
    (folder / "config.json").write_text(json.dumps(values | {"quantization_config": {"quant_method": "bitsandbytes"}}))
    assert "its weights are quantised" in refused()
    (folder / "config.json").write_text(json.dumps({"model_type": "prophetnet"}))
    assert "holds a 'prophetnet' model; give one of transpooler, bart, mbart, " in refused()
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    assert "set model.kind=compressor" in refused("model.kind=seq2seq")
    (folder / "model.safetensors").rename(folder / "tf_model.h5")
    (folder / "config.json").write_text(json.dumps(values))
    assert "has no weights (model.safetensors or pytorch_model.bin)" in refused()
