"""What the experiments share: one network, calibrated on one seed and tested on another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean
from typing import Any

import torch

from qdiff_fx import (
    PreparedUNet,
    QDiffConfig,
    QuantizedUNet,
    ReconstructionConfig,
    calibrate,
    convert_qdiff,
    prepare_qdiff,
    reconstruct,
    round_weights,
)
from qdiff_fx.calibration import CalibrationData
from qdiff_fx.evaluation import Trajectory, eps_sqnr, psnr_db
from qdiff_fx.sources import Draw, Source, resolve

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
        draw = Draw(self.images, self.steps, self.seeds[0])
        return self.source.calibration_data(draw, every=1, batch_size=self.images)

    @cached_property
    def trajectories(self) -> list[Trajectory]:
        """The float network on each test seed."""
        return [self.source.trajectory(self.draw(seed)) for seed in self.seeds[1:]]

    def draw(self, seed: int) -> Draw:
        return Draw(self.images, self.steps, seed)

    def _selected(self, selection: Selection) -> CalibrationData:
        return self.data if selection is None else self.data.select(*selection)  # type: ignore[arg-type]

    def calibrated(self, selection: Selection = None, **config: Any) -> PreparedUNet:
        """The network prepared with these settings and calibrated on some or all recorded timesteps."""
        data = self._selected(selection)
        settings = QDiffConfig(num_train_timesteps=self.source.num_train_timesteps, **config)
        prepared = prepare_qdiff(self.source.unet, settings, next(iter(self.data.batches(2))))
        calibrate(prepared, data, progress=False)
        if settings.weight_rounding == "second_order":
            round_weights(prepared, data, progress=False)
        return prepared

    def quantized(self, selection: Selection = None, reconstruction: str = "", **config: Any) -> QuantizedUNet:
        """The same, reconstructed with a preset if one is named, and converted."""
        prepared = self.calibrated(selection, **config)
        if reconstruction:
            reconstruct(
                prepared, self._selected(selection), ReconstructionConfig.preset(reconstruction), progress=False
            )
        return convert_qdiff(prepared, self.backend)

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

    @torch.no_grad()
    def inputs_met(self, network: QuantizedUNet, seed: int) -> list[torch.Tensor]:
        """x_t at every step when the network denoises by itself."""
        met: list[torch.Tensor] = []

        def keep(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            met.append(network.signature.bind(args, kwargs).tensors[0].clone())

        handle = network.register_forward_pre_hook(keep, with_kwargs=True)
        try:
            self.source.sample(network, self.draw(seed))
        finally:
            handle.remove()
        return met
