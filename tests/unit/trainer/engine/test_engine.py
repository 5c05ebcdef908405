"""What DeepSpeed's engine cannot do on this machine."""

import pytest
import torch

from transpooler.common import UserError
from transpooler.trainer.config import load_config
from transpooler.trainer.engine.engine import check_machine


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine can train in fp16")
def test_precision_that_this_machine_lacks():
    with pytest.raises(UserError, match="no CUDA device; use bf16 or fp32"):
        check_machine(load_config([], ["engine.precision=fp16"]).engine)


@pytest.mark.skipif(torch.cuda.is_available(), reason="NVMe offload may work on this machine")
def test_nvme_offload_is_refused_where_it_hangs():
    settings = ["engine.offload_optimizer=nvme", "engine.nvme_path=/tmp", "engine.zero_stage=3"]
    with pytest.raises(UserError, match=r"hangs in DeepSpeed 0.19 without a CUDA device"):
        check_machine(load_config([], settings).engine)
