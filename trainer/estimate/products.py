"""Matrix products, forward and backward, as `torch.utils.flop_counter` counts them: two operations per multiply-add.

The backward pass of a product computes the gradient of each factor that needs one: of a weight, where it is trained; of
its input, where anything that was trained lies before it. So it costs twice the forward pass where all is trained, and
nothing below the first trained parameter.
"""

from collections.abc import Iterable, Mapping

from torch import nn

from transpooler.trainer.engine.parameters import names_of_parameters, plain_name


class Trained:
    """Which parameters of a model are trained, by name, and where factors of low rank (LoRA) stand beside weights."""

    def __init__(self, names: Iterable[str] | None = None, ranks: Mapping[str, int] | None = None) -> None:
        """`names` of parameters, None for all; `ranks` of the factors by the name of their linear map."""
        self.ranks = dict(ranks or {})
        self._names = None if names is None else frozenset(names)
        self._parts = {part for name in self._names or () for part in _prefixes(name)}

    def weight(self, name: str) -> bool:
        """Whether the weight of the module with this name is trained."""
        return self._names is None or f"{name}.weight" in self._names

    def any_in(self, name: str) -> bool:
        """Whether anything in the module with this name is trained."""
        return self._names is None or name in self._parts


EVERYTHING = Trained()


def trained_of(model: nn.Module) -> Trained:
    """What of a model is trained, as its parameters say."""
    names, ranks = set(), {}
    for parameter, own in names_of_parameters(model).items():
        plain = [plain_name(name) for name in own]
        for name in plain:
            module, _, factor = name.partition(".lora_A.")
            if factor:
                ranks[module] = int(getattr(parameter, "ds_shape", parameter.shape)[0])
        if parameter.requires_grad:
            names.update(plain)
    return Trained(names, ranks)


class Products:
    """Operations of a model's matrix products on one document, summed up while its layers are walked through.

    `flows` says of a tensor whether gradients flow back to it.
    """

    def __init__(self, trained: Trained = EVERYTHING) -> None:
        self.trained = trained
        self.forward = self.backward = 0.0

    @property
    def total(self) -> float:
        """Forward and backward."""
        return self.forward + self.backward

    def linear(self, name: str, tokens: int, fan_in: int, fan_out: int, flows: bool) -> bool:
        """Count a linear map, and the factors beside it; returns whether gradients flow to its output."""
        self._count(2 * tokens * fan_in * fan_out, self.trained.weight(name), flows)
        if (rank := self.trained.ranks.get(name)) is not None:
            down, up = (self.trained.weight(f"{name}.lora_{factor}") for factor in "AB")
            self._count(2 * tokens * fan_in * rank, down, flows)
            self._count(2 * tokens * rank * fan_out, up, down or flows)
        return flows or self.trained.any_in(name)

    def attention(self, pairs: int, width: int, q: bool, k: bool, v: bool, bias: bool = False) -> bool:
        """Count scores and weighted sums of `pairs` of a query and a key, over heads of `width` together."""
        scores = q or k or bias
        self._count(2 * pairs * width, q, k)
        self._count(2 * pairs * width, scores, v)
        return scores or v

    def pool(self, work: int, scores: bool, flows: bool) -> bool:
        """Count a pooling operator's product of weights and tokens."""
        self._count(work, scores, flows)
        return scores or flows

    def _count(self, work: float, first: bool, second: bool) -> None:
        """A product of two factors, of which each may need a gradient."""
        self.forward += work
        self.backward += work * (first + second)


def _prefixes(name: str) -> Iterable[str]:
    while name:
        yield name
        name = name.rpartition(".")[0]
