"""Follow a run of the sampler: how far it is, and whether what the network predicts are numbers."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from qdiff_fx.errors import CalibrationError
from qdiff_fx.progress import Phase


class Steps:
    """Reports the steps of one run as parts of its samples.

    Args:
        bar: of a phase that counts samples.
        samples: those of this run.
        steps: how often the sampler is going to call the network, as far as one knows.
    """

    def __init__(self, bar: Phase, samples: range, steps: int):
        self._bar, self._samples, self._steps, self._done = bar, samples, steps, 0

    def see(self, inputs: dict[str, Any], output: Any) -> None:
        """To be called after every step, see `watching`.

        Raises:
            CalibrationError: the prediction is not finite. It would be drawn to its end, and calibrate nothing.
        """
        self._done += 1
        if self._done <= self._steps:
            self._bar.advance(len(self._samples) / self._steps)
        predicted = output[0] if isinstance(output, tuple) and output else getattr(output, "sample", output)
        if isinstance(predicted, Tensor) and predicted.is_floating_point() and not bool(predicted.sum().isfinite()):
            self._refuse([row for row, each in enumerate(predicted) if not bool(each.isfinite().all())])

    def finish(self) -> None:
        """Samplers that start in the middle of a schedule call the network less often than it has steps."""
        self._bar.advance(len(self._samples) * max(0, self._steps - self._done) / self._steps)

    def _refuse(self, rows: list[int]) -> None:
        if rows:
            raise CalibrationError(
                f"the network gives NaN or infinity in step {self._done} of these trajectories, rows {rows}",
                where=f"samples {self._samples.start} to {self._samples.stop - 1}",
                fix="Check its weights and its conditioning; float16 overflows where bfloat16 and float32 do not",
            )
