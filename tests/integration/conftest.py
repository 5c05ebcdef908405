"""Tiny pooling models and a ragged batch for the tests of the model as a `transformers` one."""

from typing import Any

import pytest
import torch

from tests.unit.model.test_model import FIXED, LENGTHS, RATIOS, build

SETTINGS: dict[str, dict[str, Any]] = {
    "paper": {"pooling": FIXED},
    "modern": {"pooling": RATIOS, "norm": "pre", "positions": "rotary", "activation": "swiglu"},
}


MARKS = (
    "accelerate_tests",
    "flash_attn_test",
    "flash_attn_3_test",
    "flash_attn_4_test",
    "torch_compile_test",
    "generate",
)


def pytest_configure(config):
    for mark in MARKS:
        config.addinivalue_line("markers", f"{mark}: of the common tests of transformers, see test_model_common.py")


@pytest.fixture(params=SETTINGS)
def model(request):
    return build(**SETTINGS[request.param])


@pytest.fixture
def inputs():
    mask = (torch.arange(40) < torch.tensor(LENGTHS)[:, None]).long()
    ids = torch.randint(6, 300, (3, 40), generator=torch.Generator().manual_seed(1))
    return {"input_ids": torch.where(mask > 0, ids, 1), "attention_mask": mask}
