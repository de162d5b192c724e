"""What the experiments share: one network, calibrated on one seed and tested on another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean
from typing import Any

from torch import nn

from benchmarks.recipe import decided
from qdiff_fx import PreparedUNet, QDiffConfig, QuantizedUNet, convert_qdiff
from qdiff_fx.calibration import CalibrationData
from qdiff_fx.evaluation import Trajectory, eps_sqnr, psnr_db
from qdiff_fx.sampling.recorder import as_trajectory, recording
from qdiff_fx.sources import SampleRequest, Source, resolve

Selection = tuple[str, int] | None
"""Which recorded timesteps calibrate: ("first" | "middle" | "last" | "uniform", how many); None is all of them."""


@dataclass
class Study:
    """A network and the draws it is calibrated and tested on.

    Attributes:
        network: what ``qdiff`` calls SOURCE.
        steps, images: of every trajectory.
        seeds: of calibration, then of the tests.
        backend: what the quantized networks run on.
    """

    network: str = "digits"
    steps: int = 25
    images: int = 8
    seeds: tuple[int, ...] = (1, 2)
    backend: str = "native"

    @cached_property
    def source(self) -> Source:
        return resolve(self.network)

    @cached_property
    def data(self) -> CalibrationData:
        request = SampleRequest(self.images, self.steps, self.seeds[0])
        return self.source.calibration_data(request, every=1)

    @cached_property
    def trajectories(self) -> list[Trajectory]:
        """The float network on each test seed."""
        return [self.source.trajectory(self.draw(seed)) for seed in self.seeds[1:]]

    def draw(self, seed: int) -> SampleRequest:
        return SampleRequest(self.images, self.steps, seed)

    def _selected(self, selection: Selection) -> CalibrationData:
        return self.data if selection is None else self.data.select(*selection)  # type: ignore[arg-type]

    def prepared(
        self,
        selection: Selection = None,
        reconstruction: str = "",
        *,
        unet: nn.Module | None = None,
        data: CalibrationData | None = None,
        **config: Any,
    ) -> PreparedUNet:
        """The network with these settings, calibrated on some or all recorded timesteps, its codes decided.

        Args:
            reconstruction: a preset's name.
            unet, data: instead of the network's own and of what was recorded of it.
        """
        data = self._selected(selection) if data is None else data
        settings = QDiffConfig(num_train_timesteps=self.source.num_train_timesteps, **config)
        return decided(unet or self.source.unet, settings, next(iter(data.batches(2))), data, reconstruction)

    def quantized(self, *args: Any, **kwargs: Any) -> QuantizedUNet:
        """What `prepared` gives, converted."""
        return convert_qdiff(self.prepared(*args, **kwargs), self.backend)

    def fidelity(self, network: Callable[..., Any]) -> dict[str, float]:
        """ε SQNR (mean and last step) along the float trajectories, PSNR of the final images; means over test seeds."""
        ratios = [eps_sqnr(network, trajectory) for trajectory in self.trajectories]
        images = [
            psnr_db(self.source.sample(network, self.draw(seed)), trajectory.final)  # type: ignore[arg-type]
            for seed, trajectory in zip(self.seeds[1:], self.trajectories, strict=True)
        ]
        return {
            "sqnr_db": fmean(fmean(each) for each in ratios),
            "sqnr_last_db": fmean(each[-1] for each in ratios),
            "psnr_db": fmean(images),
        }

    def walk(self, network: QuantizedUNet, seed: int) -> Trajectory:
        """Every call that the network gets when it denoises by itself."""
        with recording(network) as calls:
            final = self.source.sample(network, self.draw(seed))
        return as_trajectory(calls, final)
