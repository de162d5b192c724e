"""A Python file that defines ``load_unet()`` and ``make_scheduler(steps)``.

The file is executed, with the rights of whoever runs the command: give only files you trust.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, TypeVar

import torch
from torch import nn

from qdiff_fx.errors import QDiffError
from qdiff_fx.sampling import generate
from qdiff_fx.sources.base import Source, SourceError

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
        super().__init__(str(path.resolve()), FilePipeline(path))

    def make_scheduler(self, steps: int) -> Any:
        return self.pipe.make_scheduler(steps)


class FilePipeline:
    """The functions of the file behind the call of a diffusers pipeline."""

    def __init__(self, path: Path):
        self.path, self.module = path, import_file(path)
        for name in REQUIRED:
            if not callable(getattr(self.module, name, None)):
                raise SourceError(
                    f"it defines no {name}()", where=str(path), fix="Define load_unet() and make_scheduler(steps)"
                )
        self.unet = self._load_unet()
        self.scheduler = self.make_scheduler(1)
        self.sample_shape = self._sample_shape()
        self.set_progress_bar_config(disable=True)

    def set_progress_bar_config(self, *, disable: bool, **ignored: Any) -> None:
        self._progress_bar_config = {"disable": disable}

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int = 1,
        num_inference_steps: int = 25,
        generator: torch.Generator | list[torch.Generator] | None = None,
    ) -> SimpleNamespace:
        """``images``: an array (N, H, W, C) in [0, 1]."""
        if self.scheduler.num_inference_steps != num_inference_steps:
            self.scheduler = self.make_scheduler(num_inference_steps)
        from diffusers.utils.torch_utils import randn_tensor  # brings all of diffusers

        noise = randn_tensor((batch_size, *self.sample_shape), generator=generator)
        progress = not self._progress_bar_config["disable"]
        images = generate(self.unet, self.scheduler, noise, progress=progress, **self._conditioning(batch_size))
        return SimpleNamespace(images=(images / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy())

    def fingerprint(self) -> str:
        """What its functions do, as far as it can be seen: its text."""
        return self.path.read_text(encoding="utf-8", errors="replace")

    def make_scheduler(self, steps: int) -> Any:
        """The file's scheduler, checked for what sampling needs."""
        scheduler = self._run("make_scheduler", steps)
        length = getattr(getattr(scheduler, "config", None), "num_train_timesteps", None)
        if not isinstance(length, int) or getattr(scheduler, "num_inference_steps", None) is None:
            raise SourceError(
                "make_scheduler() returned no diffusers scheduler with its timesteps set",
                where=str(self.path),
                fix="Call set_timesteps(steps) on it before returning it",
            )
        return scheduler

    def _load_unet(self) -> nn.Module:
        unet = self._run("load_unet")
        if not isinstance(unet, nn.Module):
            raise SourceError(f"load_unet() returned {type(unet).__name__}, not an nn.Module", where=str(self.path))
        return unet

    def _conditioning(self, count: int) -> dict[str, Any]:
        return self._run("make_conditioning", count) if hasattr(self.module, "make_conditioning") else {}

    def _sample_shape(self) -> tuple[int, ...]:
        stated = getattr(self.module, "SAMPLE_SHAPE", None)
        if stated is not None:
            return tuple(stated)
        config = getattr(self.unet, "config", None)
        channels, size = getattr(config, "in_channels", None), getattr(config, "sample_size", None)
        if channels is None or size is None:
            raise SourceError(
                "the network has no config with in_channels and sample_size",
                where=str(self.path),
                fix="Set SAMPLE_SHAPE = (channels, height, width) in the file",
            )
        return (channels, size, size) if isinstance(size, int) else (channels, *size)

    def _run(self, name: str, *arguments: Any) -> Any:
        function: Callable[..., Any] = getattr(self.module, name)
        return _blaming(self.path, f"{name}() failed", lambda: function(*arguments))


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
