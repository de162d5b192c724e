"""`with qdiff_fx.calibrating(pipe) as c`: for people who have a loop already."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, cast

from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from qdiff_fx.calibration import CalibrationData
from qdiff_fx.calibration.collect import MEMORY_CAP
from qdiff_fx.calibration.data import TIMESTEP
from qdiff_fx.config import QDiffConfig
from qdiff_fx.errors import CalibrationError
from qdiff_fx.networks import QuantizedUNet
from qdiff_fx.progress import Progress
from qdiff_fx.sampling.denoiser import denoiser_of
from qdiff_fx.sampling.recorder import watching
from qdiff_fx.sampling.samplers import length_of_schedule
from qdiff_fx.signature.roles import timestep_of_call
from qdiff_fx.workflow.one_call import quantize


class Calibrating:
    """Keeps what a network is called with, and quantizes it with that.

    Args:
        unet: the float network.
        num_train_timesteps: of its training schedule, where that is known.
        memory_cap_bytes: refuse to keep more.
    """

    def __init__(self, unet: nn.Module, num_train_timesteps: int | None, memory_cap_bytes: int):
        self._unet, self._cap = unet, memory_cap_bytes
        self._metadata: dict[str, Any] = {}
        if num_train_timesteps is not None:
            self._metadata["num_train_timesteps"] = num_train_timesteps
        self._calls: list[dict[str, Any]] = []
        self._latest: list[Any] = []
        self._bytes = 0
        self._watching = ExitStack()
        self._watching.enter_context(watching(unet, before=self._see))

    @property
    def data(self) -> CalibrationData:
        """All calls so far, as `collect_calibration_data` would return them; they can be saved."""
        return CalibrationData(self._calls, self._metadata)

    def convert(
        self,
        bits: str | QDiffConfig = "w4a8",
        budget: str | float | None = "30min",
        backend: str = "native",
        *,
        progress: bool | Progress = True,
    ) -> QuantizedUNet:
        """The network, quantized with what it was called with; recording ends. Arguments are those of `quantize`.

        Raises:
            CalibrationError: it was never called.
        """
        self.stop()
        if not self._calls:
            raise CalibrationError(
                "the network was not called", where="calibrating", fix="Run the pipeline inside the with block"
            )
        quantized: Any = quantize(self._unet, bits, self.data, budget, backend, progress=progress)
        return cast(QuantizedUNet, quantized)

    def stop(self) -> None:
        """Record no more."""
        self._watching.close()

    def _see(self, inputs: dict[str, Any]) -> None:
        self._metadata.setdefault(TIMESTEP, timestep_of_call(self._unet, inputs) or "")
        leaves, structure = tree_flatten(inputs)
        before = self._latest if len(self._latest) == len(leaves) else [None] * len(leaves)
        self._latest = [self._kept(leaf, earlier) for leaf, earlier in zip(leaves, before)]
        self._calls.append(tree_unflatten(self._latest, structure))
        if self._bytes > self._cap:
            self.stop()
            raise CalibrationError(
                f"what was recorded takes {self._bytes:,} bytes, the cap is {self._cap:,}",
                where="memory_cap_bytes",
                fix="Record fewer images, or raise it",
            )

    def _kept(self, leaf: Any, earlier: Any) -> Any:
        """A copy, or what was kept of the call before where it is the same: conditioning is kept once."""
        if not isinstance(leaf, Tensor):
            return leaf
        if isinstance(earlier, Tensor) and earlier.dtype == leaf.dtype and earlier.equal(leaf.cpu()):
            return earlier
        self._bytes += leaf.nbytes
        return leaf.detach().cpu().clone()


@contextmanager
def calibrating(pipe_or_unet: Any, *, memory_cap_bytes: int = MEMORY_CAP) -> Iterator[Calibrating]:
    """Record every call that a pipeline's network gets inside the block, from whatever loop.

        with qdiff_fx.calibrating(pipe) as c:
            for prompt in prompts:
                pipe(prompt)
        pipe.unet = c.convert("w4a8")

    The more images, and the more different ones, the better; a few dozen are plenty.

    Args:
        pipe_or_unet: a diffusers pipeline, or the network that a loop of one's own calls.
        memory_cap_bytes: raise rather than keep more.
    Raises:
        CalibrationError: it has no network, or more is recorded than the cap allows.
    """
    unet = pipe_or_unet if isinstance(pipe_or_unet, nn.Module) else denoiser_of(pipe_or_unet)
    length = length_of_schedule(getattr(pipe_or_unet, "scheduler", None))
    found = Calibrating(unet, length, memory_cap_bytes)
    try:
        yield found
    finally:
        found.stop()
