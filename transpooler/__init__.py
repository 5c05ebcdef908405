"""transpooler: pretrain and fine-tune pooling encoder-decoders for long documents.

The code lies in the folders at the top of the repository (model/, data_pipeline/, trainer/, launch/, benchmarks/,
common/, configs/); this package links to them, so that `transpooler` is the only name that is installed. The names
below are the public ones. They load when they are first asked for, so that `transpooler --help` needs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transpooler.model import TranspoolerConfig, TranspoolerEncoder, TranspoolerForConditionalGeneration
    from transpooler.model.ops.decoding.prepare import prepare_for_inference
    from transpooler.model.ops.soft_topk import soft_topk
    from transpooler.trainer.config import load_config
    from transpooler.trainer.evaluation.summarizer import load

__version__ = "0.1.0"
__all__ = [
    "TranspoolerConfig",
    "TranspoolerEncoder",
    "TranspoolerForConditionalGeneration",
    "__version__",
    "load",
    "load_config",
    "prepare_for_inference",
    "soft_topk",
]

_HOMES = {
    "TranspoolerConfig": "model",
    "TranspoolerEncoder": "model",
    "TranspoolerForConditionalGeneration": "model",
    "load": "trainer.evaluation.summarizer",
    "load_config": "trainer.config",
    "prepare_for_inference": "model.ops.decoding.prepare",
    "soft_topk": "model.ops.soft_topk",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
