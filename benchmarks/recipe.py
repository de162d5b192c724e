"""From a float network and recorded inputs to a prepared one whose codes are decided, as ``qdiff quantize`` does it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from torch import nn

from benchmarks.contender import Batch
from qdiff_fx import (
    PreparedUNet,
    QDiffConfig,
    ReconstructionConfig,
    calibrate,
    prepare_qdiff,
    reconstruct,
    round_weights,
)


def decided(
    unet: nn.Module,
    config: QDiffConfig,
    example: Batch,
    batches: Iterable[Batch],
    preset: str = "",
    pieces: Callable[[Sequence[Batch]], Sequence[Batch]] = lambda batches: batches,
    finer: Callable[[PreparedUNet, Sequence[Batch]], PreparedUNet] = lambda prepared, batches: prepared,
) -> PreparedUNet:
    """Calibrated, rounded and, with a preset's name, reconstructed on the pieces of what it was calibrated on.

    Args:
        finer: gives the calibrated network finer bits where it has a recipe of its own.
    """
    batches = batches if isinstance(batches, Sequence) else list(batches)
    # Layer outputs too: backends that quantize them share the saved network with those that do not.
    prepared = prepare_qdiff(unet, config, example, output_quantizers=True)
    calibrate(prepared, batches, progress=False)
    prepared = finer(prepared, batches)
    if config.weight_rounding == "second_order":
        round_weights(prepared, batches, progress=False)
    if preset:
        reconstruct(prepared, pieces(batches), ReconstructionConfig.preset(preset), progress=False)
    return prepared
