"""A Python file that defines ``load_unet()`` and ``make_scheduler(steps)``.

The file is executed, with the rights of whoever runs the command: give only files you trust.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import torch
from torch import nn

from qdiff_fx.errors import QDiffError
from qdiff_fx.evaluation import generate
from qdiff_fx.sources.base import Draw, Source, SourceError

REQUIRED = ("load_unet", "make_scheduler")
Result = TypeVar("Result")


class PythonFileSource(Source):
    """Draws with the functions of a Python file.

    The file must define

    - ``load_unet()`` → ``nn.Module``, called as ``unet(x_t, t)``;
    - ``make_scheduler(steps)`` → a diffusers scheduler with its timesteps set;

    and may define

    - ``SAMPLE_SHAPE = (C, H, W)``, where the network has no ``config`` that tells it;
    - ``make_conditioning(count)`` → further arguments of the network, by name.

    Raises:
        SourceError: the file lacks one of the functions, or one of them fails.
    """

    def __init__(self, path: Path):
        self.path, self.identifier = path, str(path.resolve())
        self.module = import_file(path)
        for name in REQUIRED:
            if not callable(getattr(self.module, name, None)):
                raise SourceError(
                    f"it defines no {name}()", where=str(path), fix=f"Define {' and '.join(REQUIRED)}(steps) in it"
                )
        unet = self._run("load_unet")
        if not isinstance(unet, nn.Module):
            raise SourceError(f"load_unet() returned {type(unet).__name__}, not an nn.Module", where=str(path))
        self.unet = unet.eval()
        self.num_train_timesteps = self._schedule_length()
        self.sample_shape = self._sample_shape()

    @torch.no_grad()
    def sample(self, unet: nn.Module, draw: Draw) -> torch.Tensor:
        noise = torch.stack([torch.randn(self.sample_shape, generator=g) for g in draw.generators()])
        scheduler = self._run("make_scheduler", draw.steps)
        conditioning = self._run("make_conditioning", draw.count) if hasattr(self.module, "make_conditioning") else {}
        images = generate(unet, scheduler, noise, progress=self.progress, **conditioning)
        return images.clamp(-1, 1)

    def _run(self, name: str, *arguments: Any) -> Any:
        function: Callable[..., Any] = getattr(self.module, name)
        return _blaming(self.path, f"{name}() failed", lambda: function(*arguments))

    def _schedule_length(self) -> int:
        scheduler = self._run("make_scheduler", 1)
        length = getattr(getattr(scheduler, "config", scheduler), "num_train_timesteps", None)
        if not isinstance(length, int):
            raise SourceError(
                "the scheduler does not tell num_train_timesteps",
                where=str(self.path),
                fix="Return a diffusers scheduler from make_scheduler(steps)",
            )
        return length

    def _sample_shape(self) -> tuple[int, int, int]:
        stated = getattr(self.module, "SAMPLE_SHAPE", None)
        if stated is not None:
            channels, height, width = stated
            return channels, height, width
        config = getattr(self.unet, "config", None)
        channels, size = getattr(config, "in_channels", None), getattr(config, "sample_size", None)
        if channels is None or size is None:
            raise SourceError(
                "the network has no config with in_channels and sample_size",
                where=str(self.path),
                fix="Set SAMPLE_SHAPE = (channels, height, width) in the file",
            )
        height, width = (size, size) if isinstance(size, int) else size
        return channels, height, width


def import_file(path: Path) -> ModuleType:
    """Execute a Python file as a module; its folder can be imported from only while that lasts.

    Raises:
        SourceError: the file is missing, or executing it fails.
    """
    if not path.is_file():
        raise SourceError("there is no such file", where=str(path))
    name = f"qdiff_source_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise SourceError("it is not a Python file", where=str(path))
    module = importlib.util.module_from_spec(spec)
    # Dataclasses and the like look their module up.
    sys.modules[name] = module
    loader = spec.loader
    with _importable(path.resolve().parent):
        _blaming(path, "it cannot be imported", lambda: loader.exec_module(module))
    return module


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    entry = str(folder)
    sys.path.insert(0, entry)
    try:
        yield
    finally:
        sys.path.remove(entry)


def _blaming(path: Path, what: str, function: Callable[[], Result]) -> Result:
    """Run foreign code; whatever it raises becomes an error that names the file."""
    try:
        return function()
    except QDiffError:
        raise
    except Exception as error:
        detail = f"{type(error).__name__}: {error}".splitlines()[0]
        raise SourceError(f"{what} ({detail})", where=str(path)) from error
