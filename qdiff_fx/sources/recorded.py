"""A network with calls of it that somebody recorded: nothing is sampled any more."""

from __future__ import annotations

import inspect
import os
from typing import Any

from torch import nn

from qdiff_fx.calibration import CalibrationData
from qdiff_fx.calibration.in_flight import InFlight
from qdiff_fx.calibration.schedule import recorded_length
from qdiff_fx.config import QDiffConfig
from qdiff_fx.distributed import ALONE, Workers
from qdiff_fx.errors import CalibrationError
from qdiff_fx.progress import Progress
from qdiff_fx.signature.roles import sample_argument, timestep_argument
from qdiff_fx.sources.base import Source
from qdiff_fx.sources.request import SampleRequest


class RecordedSource(Source):
    """Its calibration data are there already.

    Args:
        identifier: what saved networks record.
        unet: the float network.
        data: its own inputs, which `collect_calibration_data` returned or `calibrating` recorded.
    Raises:
        CalibrationError: nothing was recorded.
    """

    draws = False

    def __init__(self, identifier: str, unet: nn.Module, data: CalibrationData):
        if not len(data):
            raise CalibrationError("there is no call of the network in it", where="data", fix="Record some first")
        self.identifier, self.pipe, self.prompts = identifier, None, ()
        self.unet, self.data = unet.eval(), data
        self.num_train_timesteps = recorded_length(data) or QDiffConfig.num_train_timesteps
        self.progress, self._takes = False, inspect.Signature().parameters

    @property
    def request(self) -> SampleRequest:
        """So many trajectories, of so many timesteps, hold as many rows as were recorded."""
        rows, timesteps = 0, set[float]()
        for batch in self.data:
            sample, timestep = sample_argument(batch), self.data.timestep or timestep_argument(batch)
            rows += 1 if sample is None else len(batch[sample])
            timesteps.add(0.0 if timestep is None else float(batch[timestep].flatten()[0]))
        return SampleRequest(-(-rows // len(timesteps)), len(timesteps))

    def example_inputs(self, count: int = 2) -> dict[str, Any]:
        """The first rows of the first call."""
        return dict(next(iter(self.data.batches(count))))

    def calibration_data(
        self,
        request: SampleRequest,
        *,
        every: int,
        resume_dir: str | os.PathLike[str] | None = None,
        workers: Workers = ALONE,
        observing: InFlight | None = None,
        progress: bool | Progress | None = None,
    ) -> CalibrationData:
        """As many rows of what was recorded as so many trajectories would have."""
        return self.data.spread(request.count * request.steps)

    def make_scheduler(self, steps: int) -> Any:
        return None

    def subjects(self, request: SampleRequest) -> dict[str, Any]:
        return {}
