"""What the fork server of `forked` imports, finds out and loads once: three seconds of CPU less for every rank."""

import deepspeed.ops
import deepspeed.runtime.zero.muon.muon_optimizer  # which every engine imports, and with it torch's compiler
import omegaconf  # noqa: F401
import pydantic.type_adapter  # noqa: F401
import rouge_score  # noqa: F401

import transpooler.launch.train
import transpooler.trainer.checkpoint.checkpoint
import transpooler.trainer.evaluation.evaluate
import transpooler.trainer.train
import transpooler.trainer.weights.export  # noqa: F401
from transpooler.model.ops.soft_topk import cpp_backend

deepspeed.ops.__compatible_ops__  # noqa: B018 (compiles a probe when it is first asked for)
cpp_backend.extension()
