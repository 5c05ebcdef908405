"""The presets in configs/ against the paper's settings: dimensions, schedules, parameters counted by hand."""

from dataclasses import fields

import pytest
import torch

from tests.paths import ROOT
from transpooler.model import TranspoolerConfig, TranspoolerForConditionalGeneration
from transpooler.model.architecture import Architecture
from transpooler.trainer.config import load_config

CONFIGS = ROOT / "configs"
PAPER = {
    "d_model": 512,
    "num_heads": 8,
    "ffn_dim": 2048,
    "activation": "relu",
    "norm": "post",
    "positions": "sinusoidal",
    "embedding_norm": False,
    "pooling_base": 20.0,
    "dropout": 0.1,
}
"""What all architectures of the paper share."""
MODERN = PAPER | {"norm": "pre", "activation": "swiglu", "ffn_dim": 1366, "positions": "rotary"}
LAYERS_OF_PYRAMIDS = {"pyramidion": [(1, 2048), (2, 512)], "deep": [(2, 4096), (3, 2048), (4, 1024), (5, 512)]}
EMBEDDINGS = 32_000 * 512
"""One matrix for source, target and output, as in the paper's joint vocabulary of 32k."""
ATTENTION, FFN, NORM = 4 * (512 * 512 + 512), 2 * 512 * 2048 + 2048 + 512, 2 * 512
LAYERS = (ATTENTION + FFN + 2 * NORM) + (2 * ATTENTION + FFN + 3 * NORM)
"""One layer of the encoder and one of the decoder."""
SCORER = 512 + 1
GATED_FFN = 3 * 512 * 1366 + 2 * 1366 + 512
TABLE = {
    # files: layers each, block, (after layer, length), parameters, what 8,192 tokens become
    ("vanilla",): (2, None, [], EMBEDDINGS + 2 * LAYERS, 8192),
    ("blockwise",): (2, 512, [], EMBEDDINGS + 2 * LAYERS, 8192),
    ("transpooler",): (2, 512, [(2, 512)], EMBEDDINGS + 2 * LAYERS + SCORER, 512),
    ("pyramidion",): (2, 512, LAYERS_OF_PYRAMIDS["pyramidion"], EMBEDDINGS + 2 * LAYERS + 2 * SCORER, 512),
    ("deep_pyramidion",): (6, 512, LAYERS_OF_PYRAMIDS["deep"], EMBEDDINGS + 6 * LAYERS + 4 * SCORER, 512),
    ("deep_pyramidion", "modern"): (
        *(6, 512, LAYERS_OF_PYRAMIDS["deep"]),
        # Norms close both stacks, and one stands before each scorer.
        EMBEDDINGS + 6 * (LAYERS + 2 * (GATED_FFN - FFN)) + 4 * (SCORER + NORM) + 2 * NORM,
        512,
    ),
}


@pytest.mark.parametrize("names", TABLE, ids="+".join)
def test_a_preset_is_what_the_paper_says(names):
    num_layers, block, schedule, parameters, kept = TABLE[names]
    architecture = load_config([CONFIGS / f"{name}.yaml" for name in names]).seq2seq
    assert (architecture.encoder_layers, architecture.decoder_layers) == (num_layers, num_layers)
    assert architecture.block_size == block
    assert [(stage.after_layer, stage.length) for stage in architecture.pooling] == schedule
    assert all(stage.operator == "successive_halving" for stage in architecture.pooling)
    shared = MODERN if "modern" in names else PAPER
    assert {name: getattr(architecture, name) for name in shared} == shared
    with torch.device("meta"):
        config = TranspoolerConfig.from_architecture(
            architecture, vocab_size=32_000, pad_token_id=1, bos_token_id=0, eos_token_id=2
        )
        model = TranspoolerForConditionalGeneration(config)
        assert sum(parameter.numel() for parameter in model.parameters()) == parameters
        ids = torch.zeros(1, 8192, dtype=torch.int64)
        assert model.get_encoder()(ids).last_hidden_state.shape == (1, kept, 512)


def test_every_architecture_of_the_configurations_is_in_the_table():
    """A new preset wants a row."""
    known = {name for names in TABLE for name in names} | {"demo", "demo_pretrain", "demo_finetune", "demo_weights"}
    assert {path.stem for path in CONFIGS.glob("*.yaml")} == known


def test_the_defaults_are_the_paper_s():
    defaults = {entry.name: entry.default for entry in fields(Architecture)}
    assert {name: defaults[name] for name in PAPER} == PAPER
    assert (defaults["encoder_layers"], defaults["decoder_layers"], defaults["block_size"]) == (6, 6, 512)
