"""Quantize a diffusers pipeline's UNet and put it back: calibrate, convert, save, load, sample."""

from __future__ import annotations

import argparse
from pathlib import Path

from qdiff_fx import (
    QDiffConfig,
    calibrate,
    collect_calibration_data,
    convert_qdiff,
    load_qdiff,
    prepare_qdiff,
    round_weights,
    save_qdiff,
)
from qdiff_fx.bundled.digits import load_digits_pipeline
from qdiff_fx.report.sheet import save_sheet
from qdiff_fx.sources import SampleRequest


def main() -> None:
    """W4A8, compared with the float network on the same noise."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out/digits-w4a8"))
    parser.add_argument("--backend", default="native")
    parser.add_argument("--samples", type=int, default=20, help="trajectories to calibrate on")
    parser.add_argument("--steps", type=int, default=25)
    args = parser.parse_args()

    pipe = load_digits_pipeline()
    data = collect_calibration_data(
        pipe,
        num_samples=args.samples,
        num_inference_steps=args.steps,
        seed=0,
        inputs={"labels": [number % 10 for number in range(args.samples)]},
    )

    prepared = prepare_qdiff(pipe.unet, QDiffConfig(weight_bits=4), data[0])
    calibrate(prepared, data)
    round_weights(prepared, data)
    save_qdiff(convert_qdiff(prepared, backend="reference"), args.out)

    request = SampleRequest(count=10, steps=args.steps, seed=1)

    def digits() -> object:
        return pipe(list(request.numbers), args.steps, generator=request.generators()).images

    rows = {"FP32": digits()}
    pipe.unet = load_qdiff(args.out, backend=args.backend)
    rows["W4A8"] = digits()
    print(pipe.unet.explain())
    print(f"wrote {save_sheet(rows, args.out.with_suffix('.png'))}")


if __name__ == "__main__":
    main()
