"""What a row of the operator table says about one operator."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

from qdiff_fx.quant.qparams import LayerKind


class Kind(Enum):
    """What an operator is for."""

    LAYER = auto()  # a convolution or a linear layer: x, weight, bias
    ATTENTION = auto()
    PRODUCT = auto()  # of two matrices
    NORM = auto()
    SOFTMAX = auto()
    POOLING = auto()
    UPSAMPLING = auto()
    PADDING = auto()
    DROPOUT = auto()
    POINTWISE = auto()
    REDUCTION = auto()
    INDEXING = auto()
    LAYOUT = auto()  # the same elements elsewhere, in another type or shape
    CREATION = auto()
    RANDOM = auto()
    SIZE = auto()  # a number about a tensor, not its elements
    NUMBER = auto()  # arithmetic of numbers, sizes among them
    ASSERTION = auto()
    QUANTIZE = auto()
    DEQUANTIZE = auto()
    LOOKUP = auto()  # the row of a table that belongs to a timestep
    KERNEL = auto()  # what backends put in the place of the above


class Channels(Enum):
    """Where the channels of the result come from."""

    KEPT_BY_ALL = auto()  # channel i, in any dimension, is made of channel i of every argument that has it: pointwise
    KEPT = auto()  # of channel i of argument 0 and of statistics, in any dimension
    KEPT_IN_DIM_1 = auto()  # the same, in dimension 1 alone
    PERMUTED = auto()
    PADDED = auto()
    CONCATENATED = auto()
    CONTRACTED = auto()  # every channel of every channel
    UNFOLLOWED = auto()  # mixed, counted anew, or nothing has needed to follow it yet


class Layout(Enum):
    """What becomes of the elements of argument 0 where an operator computes no new ones."""

    NEW = auto()  # it computes
    ALIAS = auto()  # the very tensor
    COPY = auto()
    CAST = auto()  # to another type or device
    RESHAPE = auto()  # in the same order, possibly fewer or repeated: the identity where the shape stays
    PERMUTATION = auto()  # of dimensions
    MOVE = auto()  # anything else: joined, cut, repeated, turned, reordered


class NoOp(Enum):
    """When the result is argument 0: same elements, shape, type and device."""

    SAME_TYPE = auto()  # whenever type and device stay
    SAME_SHAPE = auto()  # and the shape stays
    SWITCHED_OFF = auto()  # not training, or probability 0
    BY_ONE = auto()  # the second operand is the number 1
    IN_ORDER = auto()  # the dimensions stay where they are
    NOTHING_PADDED = auto()
    ONE_TENSOR = auto()  # there is only one to join


class Trait(Enum):
    """What else some pass asks about an operator."""

    AFFINE = auto()  # with a number as other operand: a tensor times a number, plus a number
    BETWEEN_SCORES = auto()  # may stand between q·kᵀ and its softmax in what means to be attention
    READS_STRIDES = auto()  # so that a copy before it may matter
    READS_FLOAT32 = auto()  # scales and biases, whatever type the rest computes in
    ONEDNN_LAYER = auto()  # one of oneDNN's int8 layers, nothing fused to it
    ONEDNN_SUM = auto()  # the same with an addition to another tensor, which it writes into
    MOVES_CODES = auto()  # one scale for a whole tensor may as well be applied before it


@dataclass(frozen=True)
class Layer:
    """A layer with a weight.

    Attributes:
        kind: as reports name it.
        dims: spatial dimensions of a convolution; 0 for a linear layer.
    """

    kind: LayerKind
    dims: int = 0


@dataclass(frozen=True)
class Writes:
    """A functional schema that writes all the same: into `statistics`, where `flag` is on and they are given."""

    flag: str
    statistics: str


@dataclass(frozen=True)
class Operator:
    """One row.

    Attributes:
        name: namespace, operator and overload, "aten.conv2d.default"; of a Python function "operator.add".
        kind, channels, layout: what it does.
        noop: the condition under which it may go.
        canonical: name of the one operator that canonicalize spells it as; empty when it is that itself.
        layer: what kind of layer with a weight it is.
        sizes_only: arguments of which only sizes and type matter, not the elements.
        writes: when it writes into an argument in spite of its schema.
        traits: the rest.
        stored: whether it may be in a saved graph. Not what checks, what backends put in afterwards, and what hands out
            memory as it finds it.
    """

    name: str
    kind: Kind
    channels: Channels = Channels.UNFOLLOWED
    layout: Layout = Layout.NEW
    noop: NoOp | None = None
    canonical: str = ""
    layer: Layer | None = None
    sizes_only: tuple[str, ...] = ()
    writes: Writes | None = None
    traits: frozenset[Trait] = frozenset()
    stored: bool = True

    @property
    def packet(self) -> str:
        """The name without its overload: "aten.conv2d"; of a Python function the name."""
        parts = self.name.split(".")
        return ".".join(parts[:2])

    @property
    def namespace(self) -> str:
        return self.name.partition(".")[0]


def rows(names: str, kind: Kind, *traits: Trait, namespace: str = "aten", **facts: Any) -> tuple[Operator, ...]:
    """A row for each of the names, separated by spaces, that have the same facts; an overload left out is `default`."""
    return tuple(Operator(_whole(name, namespace), kind, traits=frozenset(traits), **facts) for name in names.split())


def _whole(name: str, namespace: str) -> str:
    return f"{namespace}.{name}" if "." in name else f"{namespace}.{name}.default"
