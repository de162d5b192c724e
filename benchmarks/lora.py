"""A LoRA beside integer layers: how near it stays to the float network with the same one, and what a step costs.

``python -m benchmarks.lora FOLDER`` of a network that `qdiff quantize` saved.

The LoRA is random, of every attention and feed-forward layer. Its size is chosen: what it changes is compared to what
quantizing changes. With ``--seen`` a network is calibrated anew, first without and then with each LoRA, for ranges that
were seen with it.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import torch
import typer
from torch import Tensor, nn

from benchmarks.output import Column, number, print_table, write_json
from qdiff_fx import QuantizedUNet, calibrate, convert_qdiff, load_qdiff, prepare_qdiff, round_weights
from qdiff_fx.calibration import CalibrationData
from qdiff_fx.evaluation import sqnr_db
from qdiff_fx.sampling import Trajectory
from qdiff_fx.sources import SampleRequest, resolve

PLACES = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2")
SEED, STEPS, ROUNDS = 2, 10, 9
CALIBRATION = SampleRequest(count=16, steps=20, seed=1)


@dataclass(frozen=True)
class Row:
    """One size of LoRA.

    Attributes:
        changes: of the float network's prediction, by the LoRA: SQNR in dB, mean over the steps.
        quantized: of the float network without it, by quantizing.
        kept: of the float network with it, by quantizing what it is loaded beside.
        shift: of what quantized networks predict, by the LoRA; as large as `changes` where it does the same to them.
        step: seconds with it, in units of seconds without.
        seen: `kept`, of a network whose ranges were seen with the LoRA too; None where that was not asked for.
        seen_without: `quantized`, of that network.
    """

    size: float
    rank: int
    changes: float
    quantized: float
    kept: float
    shift: float
    step: float
    seen: float | None = None
    seen_without: float | None = None


COLUMNS: dict[str, Column] = {
    "size": ("size", number(1)),
    "rank": ("rank", str),
    "changes float": ("changes", number(1)),
    "changes quantized": ("shift", number(1)),
    "quantized - float": ("quantized", number(1)),
    "both with it": ("kept", number(1)),
    "step": ("step", number(2)),
    "both, seen with it": ("seen", number(1)),
    "without it": ("seen_without", number(1)),
}


def random_lora(network: nn.Module, rank: int, size: float) -> dict[str, Tensor]:
    """Matrices whose product is about `size` times as large as the weight."""
    generator = torch.Generator().manual_seed(0)
    found: dict[str, Tensor] = {}
    for path, layer in network.named_modules():
        if isinstance(layer, nn.Linear) and path.endswith(PLACES):
            outputs, columns = layer.weight.shape
            down = torch.randn(rank, columns, generator=generator)
            up = torch.randn(outputs, rank, generator=generator) * (
                size * float(layer.weight.detach().std()) / rank**0.5
            )
            found |= {f"unet.{path}.lora_A.weight": down, f"unet.{path}.lora_B.weight": up}
    return found


def fused(network: nn.Module, lora: dict[str, Tensor]) -> nn.Module:
    """The float network with the same in its weights."""
    twin = copy.deepcopy(network)
    for name in lora:
        if ".lora_A." in name:
            path = name.removeprefix("unet.").removesuffix(".lora_A.weight")
            twin.get_parameter(f"{path}.weight").data += lora[name.replace("_A.", "_B.")] @ lora[name]
    return twin


@torch.no_grad()
def predictions(network: Any, trajectory: Trajectory) -> list[Tensor]:
    found = (network(each.sample, each.timestep, **trajectory.conditioning) for each in trajectory.steps)
    return [getattr(each, "sample", each) for each in found]


def mean_db(expected: list[Tensor], found: list[Tensor]) -> float:
    return sum(map(sqnr_db, expected, found)) / len(expected)


def seen_with(lora: dict[str, Tensor], network: QuantizedUNet, unet: nn.Module, data: CalibrationData) -> QuantizedUNet:
    """Another network of that configuration, whose ranges were seen without the LoRA and with it."""
    prepared = prepare_qdiff(unet, network.qconfig, data[0])
    calibrate(prepared, data, progress=False)
    prepared.load_lora_adapter(lora)
    calibrate(prepared, data, progress=False)
    prepared.unload_lora()
    round_weights(prepared, data, progress=False)
    return convert_qdiff(prepared, network.backend)


def compare(
    folder: Path, source_name: str, backend: str, rank: int, sizes: list[float], images: int, seen: bool
) -> Iterator[Row]:
    """A row for each size."""
    network: QuantizedUNet = load_qdiff(folder, backend)
    source = resolve(source_name or network.source)
    data = source.calibration_data(CALIBRATION, every=1) if seen else None
    trajectory = source.trajectory(SampleRequest(images, STEPS, SEED))
    plain, without = predictions(source.unet, trajectory), predictions(network, trajectory)
    alone = load_qdiff(folder, backend)
    for size in sizes:
        lora = random_lora(source.unet, rank, size)
        expected = predictions(fused(source.unet, lora), trajectory)
        network.unload_lora()
        network.load_lora_adapter(lora)
        found = predictions(network, trajectory)
        seconds: dict[int, list[float]] = {0: [], 1: []}
        for _ in range(ROUNDS):
            for index, each in enumerate((alone, network)):
                begun = time.perf_counter()
                predictions(each, trajectory)
                seconds[index].append(time.perf_counter() - begun)
        step = median(seconds[1]) / median(seconds[0])
        kept, shift = mean_db(expected, found), mean_db(found, without)
        row = Row(size, rank, mean_db(expected, plain), mean_db(plain, without), kept, shift, step)
        if data is not None:
            other = seen_with(lora, network, source.unet, data)
            row = replace(row, seen_without=mean_db(plain, predictions(other, trajectory)))
            other.load_lora_adapter(lora)
            row = replace(row, seen=mean_db(expected, predictions(other, trajectory)))
        yield row


def main(
    folder: Annotated[Path, typer.Argument(help="A saved network.")],
    source: Annotated[str, typer.Option(help="The float network, where the folder does not say.")] = "",
    backend: Annotated[str, typer.Option(help="What it runs on.")] = "native",
    rank: Annotated[int, typer.Option(min=1, help="r of the LoRA.")] = 8,
    size: Annotated[list[float], typer.Option(help="Of its product, in units of the weights'.")] = [0.1, 0.3, 1.0],  # noqa: B006
    images: Annotated[int, typer.Option(min=1, help="Drawn together.")] = 4,
    seen: Annotated[bool, typer.Option("--seen", help="Also of ranges that are seen with each LoRA.")] = False,
    json: Annotated[Path | None, typer.Option(help="Write the rows here.")] = None,
) -> None:
    """Print the table."""
    rows = list(compare(folder, source, backend, rank, size, images, seen))
    print_table(f"LoRA beside {folder.name} on {backend}", COLUMNS, rows)
    if json is not None:
        write_json([asdict(row) for row in rows], json)


if __name__ == "__main__":
    typer.run(main)
