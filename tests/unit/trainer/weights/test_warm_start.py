"""Weights from elsewhere: a BART of `transformers`, another pooling schedule. What has no counterpart is reported."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from transpooler.common import UserError
from transpooler.data_pipeline.shards.dataset import Document
from transpooler.data_pipeline.tokenizer import load_tokenizer
from transpooler.trainer.config import load_config
from transpooler.trainer.evaluation.generate import target_ids
from transpooler.trainer.weights.export import export_model
from transpooler.trainer.weights.models import build_model
from transpooler.trainer.weights.warm_start import start_from

LIKE_BART = ["model.activation=gelu", "model.embedding_norm=true", "model.positions=learned", "model.max_positions=128"]


@pytest.fixture
def bart(tiny_settings, tmp_path):
    """A small random BART, saved as `transformers` saves it, with the corpus's tokenizer; and our settings for it."""
    from transformers import BartConfig, BartForConditionalGeneration

    settings = [*tiny_settings, *LIKE_BART, "model.block_size=null", "model.pooling=[]"]
    tokenizer = load_tokenizer(Path(load_config([], settings).data.shards) / "tokenizer")
    torch.manual_seed(3)
    model = BartForConditionalGeneration(
        BartConfig(
            vocab_size=len(tokenizer), d_model=32, encoder_layers=2, decoder_layers=1, encoder_attention_heads=2,
            decoder_attention_heads=2, encoder_ffn_dim=64, decoder_ffn_dim=64, max_position_embeddings=64, init_std=0.3,
            pad_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id, decoder_start_token_id=tokenizer.bos_token_id,
        )
    ).eval()  # fmt: skip
    for layer in (model.model.encoder, model.model.decoder):
        torch.nn.init.normal_(layer.layernorm_embedding.bias)  # not 0, so that a lost norm shows
    model.save_pretrained(tmp_path / "bart")
    tokenizer.save_pretrained(tmp_path / "bart")
    return model, tokenizer, settings, tmp_path / "bart"


def test_the_logits_of_a_bart_are_ours(bart, capsys):
    theirs, tokenizer, settings, folder = bart
    config = load_config([], settings)
    ours = build_model(config, tokenizer)
    start_from(ours, folder, config, tokenizer)
    ids = torch.randint(6, len(tokenizer), (3, 40), generator=torch.Generator().manual_seed(0))
    mask = (torch.arange(40) < torch.tensor([[40], [25], [7]])).long()
    given = {"input_ids": ids, "attention_mask": mask, "decoder_input_ids": ids[:, :9]}
    with torch.no_grad():
        logits = ours.eval()(**given).logits
        torch.testing.assert_close(logits, theirs(**given).logits, atol=1e-5, rtol=1e-5)
    assert logits.std() > 0.1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "init_from" in line]
    assert line.endswith("every tensor found its place")  # zeros in final_logits_bias need none
    table, stored = ours.model.encoder.embedder.positions.weight, theirs.model.encoder.embed_positions.weight
    assert torch.equal(table[:64], stored[2:])
    assert torch.equal(table[64:], stored[2:])  # longer documents: the table again


@pytest.mark.parametrize("kept", ["lm_head.weight", "model.encoder.embed_tokens.weight"])
def test_tied_embeddings_are_found_under_each_of_their_names(bart, kept, capsys):
    theirs, tokenizer, settings, folder = bart
    tied = {name for name, item in theirs.state_dict().items() if item.data_ptr() == theirs.lm_head.weight.data_ptr()}
    tensors = {name: item for name, item in theirs.state_dict().items() if name == kept or name not in tied}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = load_config([], settings)
    ours = build_model(config, tokenizer)
    start_from(ours, folder, config, tokenizer)
    assert torch.equal(ours.lm_head.weight, theirs.lm_head.weight)
    assert "start from random" not in capsys.readouterr().err


def test_how_a_bart_begins_its_texts_is_taken_over(bart):
    """Training, generation and exports begin as the weights do, unless another beginning is written."""
    theirs, tokenizer, settings, folder = bart
    theirs.config.decoder_start_token_id = theirs.generation_config.decoder_start_token_id = tokenizer.eos_token_id
    theirs.generation_config.forced_bos_token_id = tokenizer.bos_token_id
    theirs.save_pretrained(folder)
    config = load_config([], [*settings, f"train.init_from={folder}"])
    model: Any = build_model(config, tokenizer)
    assert model.config.decoder_start_token_id == tokenizer.eos_token_id
    assert config.generation.forced_bos_token_id == tokenizer.bos_token_id
    assert config.data.target_prefix_ids == (tokenizer.bos_token_id,)
    document = Document("a", np.arange(6, 12, dtype=np.uint16), np.arange(20, 24, dtype=np.uint16), {})
    expected = [tokenizer.bos_token_id, *range(20, 24), tokenizer.eos_token_id]
    assert target_ids(document, tokenizer, config) == expected
    with pytest.raises(UserError, match=r"generation.forced_bos_token_id is 5, but data.target_prefix_ids is \[0\]"):
        load_config([], [*settings, f"train.init_from={folder}", "generation.forced_bos_token_id=5"])


def test_a_bart_becomes_a_pooling_model(bart, capsys):
    theirs, tokenizer, settings, folder = bart
    more = ["model.positions=rotary", "model.block_size=16", "model.pooling=[{after_layer: 2, length: 8}]"]
    config = load_config([], [*settings, *more])
    ours = build_model(config, tokenizer)
    start_from(ours, folder, config, tokenizer)
    assert torch.equal(ours.lm_head.weight, theirs.model.shared.weight)
    left, unused = [line for line in capsys.readouterr().err.splitlines() if "init_from" in line]
    assert "poolers.2.scorer.weight, model.encoder.poolers.2.scorer.bias start from random weights" in left
    assert "model.encoder.embed_positions.weight" in unused


def test_what_cannot_fit_is_refused(bart):
    _, tokenizer, settings, folder = bart
    config = load_config([], [*settings, "model.ffn_dim=32", "model.norm=pre"])
    expected = r"model.ffn_dim is 32, in the weights 64; model.norm is 'pre', in the weights 'post'; leave out"
    with pytest.raises(UserError, match=expected):
        start_from(build_model(config, tokenizer), folder, config, tokenizer)


def test_a_blockwise_model_becomes_a_pooling_one(tiny_settings, tmp_path, capsys):
    plain = load_config([], [*tiny_settings, "model.pooling=[]"])
    tokenizer = load_tokenizer(Path(plain.data.shards) / "tokenizer")
    before = build_model(plain, tokenizer)
    export_model(before, tokenizer, tmp_path / "plain", plain, step=3)
    config = load_config([], [*tiny_settings, "seed=4"])
    after = build_model(config, tokenizer)
    start_from(after, tmp_path / "plain", config, tokenizer)
    copied = {name for name, value in before.named_parameters() if torch.equal(after.get_parameter(name), value)}
    assert copied == {name for name, _ in before.named_parameters()}
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "init_from" in line]
    assert line.count("scorer") == 4
    assert "start from random weights" in line
