"""How a Python call of the network maps to its graph's inputs, and the graph's outputs to the result."""

from qdiff_fx.signature.call import BoundCall, CallSignature, Parameter
from qdiff_fx.signature.dropin import Config, DropIn
from qdiff_fx.signature.inputs import CaptureMismatchError, Size, TensorInput
from qdiff_fx.signature.outputs import Output

__all__ = [
    "BoundCall",
    "CallSignature",
    "CaptureMismatchError",
    "Config",
    "DropIn",
    "Output",
    "Parameter",
    "Size",
    "TensorInput",
]
