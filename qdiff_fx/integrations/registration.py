"""diffusers learns of quantized networks, whichever of the two is imported first.

diffusers has no way for others to announce themselves before it is imported, and importing it here would take seconds.
So what it keeps in tables gets an entry when the module with the table is imported:

    diffusers.pipelines.pipeline_loading_utils   which classes of which library save and load components
    diffusers.quantizers.auto                    what a `quantization_config` may be

A module that is there already gets it at once. For one that is not, a finder stands before those of Python, which knows
these two names only, leaves finding to the others, and goes when both have been seen.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

NAME = "qdiff_fx"
COMPONENTS = (
    "QuantizedUNet",
    "QuantizedAutoencoderKL",
    "QuantizedAutoencoderTiny",
    "QuantizedControlNetModel",
    "QuantizedMultiControlNetModel",
    "DigitEmbedding",
)
"""Parts of pipelines: quantized networks, autoencoders and ControlNets with such inside, and the labels of the bundled
digits."""


def register_component(module: ModuleType) -> None:
    """`pipe.save_pretrained` writes ["qdiff_fx", "QuantizedUNet"] into model_index.json, `from_pretrained` reads it.

    Classes of this package that are not among `COMPONENTS` are not loaded, whatever a folder says.
    """
    methods = {component: ["save_pretrained", "from_pretrained"] for component in COMPONENTS}
    module.LOADABLE_CLASSES[NAME] = methods
    module.ALL_IMPORTABLE_CLASSES.update(methods)


def register_quantizer(module: ModuleType) -> None:
    """`QDiffConfig` is a `quantization_config`."""
    from qdiff_fx.config import QDiffConfig
    from qdiff_fx.integrations.quantizer import QDiffQuantizer

    module.AUTO_QUANTIZATION_CONFIG_MAPPING[NAME] = QDiffConfig
    module.AUTO_QUANTIZER_MAPPING[NAME] = QDiffQuantizer


Register = Callable[[ModuleType], None]
TABLES: dict[str, Register] = {
    "diffusers.pipelines.pipeline_loading_utils": register_component,
    "diffusers.quantizers.auto": register_quantizer,
}


def install() -> None:
    """Register with what is imported, and with the rest when it is."""
    to_come = {}
    for name, register in TABLES.items():
        module = sys.modules.get(name)
        if module is None:
            to_come[name] = register
        else:
            _attempt(register, module)
    if to_come:
        sys.meta_path.insert(0, _Awaiting(to_come))


def _attempt(register: Register, module: ModuleType) -> None:
    """An error of ours must not keep others from importing diffusers."""
    try:
        register(module)
    except Exception as error:
        warnings.warn(
            f"qdiff_fx does not fit this version of diffusers: {module.__name__} is another one "
            f"({type(error).__name__}: {error}). Save and load networks with save_qdiff and load_qdiff.",
            stacklevel=2,
        )


class _Awaiting(MetaPathFinder):
    """Finds what the others find, and has it registered once it has been executed."""

    def __init__(self, to_come: dict[str, Register]):
        self._to_come = to_come

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        register = self._to_come.pop(fullname, None)
        if register is None:
            return None
        if not self._to_come and self in sys.meta_path:
            sys.meta_path.remove(self)
        finders = (each for each in sys.meta_path if each is not self)
        specs = (finder.find_spec(fullname, path, target) for finder in finders)
        spec = next((each for each in specs if each is not None), None)
        if spec is not None and spec.loader is not None:
            spec.loader = _Registering(spec.loader, register)
        return spec


class _Registering(Loader):
    """Another loader, for as long as the module is executed."""

    def __init__(self, loader: Loader, register: Register):
        self._loader, self._register = loader, register

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        _attempt(self._register, module)
