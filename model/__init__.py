"""The pooling encoder-decoder and its operators. Knows tensors; nothing of files, clusters or DeepSpeed."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing import TypeAlias

    from transpooler.model.classification import TranspoolerForSequenceClassification
    from transpooler.model.compressor.modeling import CompressorForConditionalGeneration
    from transpooler.model.config import TranspoolerConfig
    from transpooler.model.encoder import TranspoolerEncoder
    from transpooler.model.modeling import TranspoolerForConditionalGeneration, TranspoolerModel

    PoolingModel: TypeAlias = TranspoolerForConditionalGeneration | CompressorForConditionalGeneration
    """What trains, evaluates and summarizes."""

__all__ = [
    "TranspoolerConfig",
    "TranspoolerEncoder",
    "TranspoolerForConditionalGeneration",
    "TranspoolerForSequenceClassification",
    "TranspoolerModel",
]


def __getattr__(name: str) -> Any:
    # torch and transformers load when a class is first asked for: the command line's --help needs neither.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module("transpooler.model.modeling"), name)
