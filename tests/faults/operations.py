"""The long operations, each as small as it can be and still take long enough to be killed in.

`run(inputs, work)` starts or goes on, and returns a digest of everything it came to; `check(inputs, work)` raises when
something half-done lies under a name. Both are called in processes of their own.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import os
import shutil
import stat
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import DDIMScheduler
from torch import Tensor, nn

from qdiff_fx import (
    PreparedUNet,
    QDiffConfig,
    QuantizedUNet,
    ReconstructionConfig,
    calibrate,
    collect_calibration_data,
    convert_qdiff,
    load_prepared,
    load_qdiff,
    prepare_qdiff,
    reconstruct,
    round_weights,
    save_prepared,
    save_qdiff,
)
from qdiff_fx.calibration import kept
from qdiff_fx.kernels import status
from qdiff_fx.sources import SampleRequest, resolve
from qdiff_fx.workflow.job import Job
from qdiff_fx.workflow.run import quantize

for _needed in ("scipy.linalg", "qdiff_fx.capture", "qdiff_fx.storage.symbolic"):
    importlib.import_module(_needed)  # once, and not in every process that is killed

Batch = dict[str, Tensor]
SAVES, PARTS, LAYERS, WIDTH = 6, 4, 2, 16


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, WIDTH, 3, padding=1), nn.Conv2d(WIDTH, 3, 3, padding=1)
        self.config = {"in_channels": 3, "sample_size": 8}
        self.middle = nn.ModuleList(nn.Conv2d(WIDTH, WIDTH, 3, padding=1) for _ in range(LAYERS))

    def forward(self, sample: Tensor, timestep: Tensor) -> Tensor:
        h = self.first(sample)
        for layer in self.middle:
            h = h + layer(torch.relu(h))
        return self.last(h) + timestep.reshape(-1, 1, 1, 1) / 1000


def network() -> Net:
    torch.manual_seed(0)
    return Net().eval().requires_grad_(False)


def batches(count: int = PARTS) -> list[Batch]:
    torch.manual_seed(1)
    steps = torch.linspace(0, 999, 2 * count).round().reshape(count, 2).flip(0)
    return [{"sample": torch.randn(2, 3, 8, 8), "timestep": step} for step in steps]


def digest(parts: Iterable[Tensor | str]) -> str:
    found = hashlib.sha256()
    for part in parts:
        found.update(part.encode() if isinstance(part, str) else part.detach().contiguous().numpy().tobytes())
    return found.hexdigest()


def of_prepared(prepared: PreparedUNet) -> str:
    return of_quantized(convert_qdiff(prepared, "reference"))


def of_quantized(quantized: QuantizedUNet) -> str:
    with torch.no_grad():
        return digest(quantized(**batch) for batch in batches(1))


def make_inputs(inputs: Path) -> None:
    """What the operations start from: a prepared network, a calibrated one, and two quantized ones."""
    config = QDiffConfig(weight_bits=4, timestep_bins=2)
    prepared = prepare_qdiff(network(), config, batches(1)[0])
    save_prepared(prepared, inputs / "prepared")
    calibrate(prepared, batches(), progress=False)
    save_prepared(prepared, inputs / "calibrated")
    for name, bits in (("four", 4), ("eight", 8)):
        changed = QDiffConfig(weight_bits=bits, timestep_bins=2)
        save_qdiff(convert_qdiff(prepared, "reference", config=changed), inputs / name)
    here = status()
    assert here.library is not None, here.reason
    assert here.operators is not None
    shutil.copy(here.library, inputs / f"libqdiff_{here.kernel}.so")
    shutil.copy(here.operators, inputs / "libqdiff_operators.so")
    (inputs / "compiler").write_text(COMPILER.format(libraries=inputs))
    (inputs / "compiler").chmod(stat.S_IRWXU)


@functools.cache
def quantized(inputs: Path, name: str) -> QuantizedUNet:
    return load_qdiff(inputs / name, "reference")


@functools.cache
def prepared_as(inputs: Path, name: str) -> PreparedUNet:
    return load_prepared(inputs / name)


def load_inputs(inputs: Path) -> None:
    """Once, before processes are forked: each then has them for its own."""
    for name in ("eight", "four"):
        quantized(inputs, name)
    for name in ("prepared", "calibrated"):
        prepared_as(inputs, name)


def save(inputs: Path, work: Path) -> str:
    networks = [quantized(inputs, name) for name in ("eight", "four")]
    for number in range(SAVES):
        save_qdiff(networks[number % 2], work / "saved")
    return digest([of_quantized(load_qdiff(work / "saved", "reference")), *sorted(os.listdir(work))])


def check_saved(inputs: Path, work: Path) -> None:
    """From the first save on there is always one, and it is one of the two."""
    if (work / "saved").exists():
        either = {of_quantized(quantized(inputs, name)) for name in ("eight", "four")}
        assert of_quantized(load_qdiff(work / "saved", "reference")) in either


def calibrate_in_parts(inputs: Path, work: Path) -> str:
    done = [number for number in range(PARTS) if (work / f"after-{number}").exists()]
    prepared = load_prepared(work / f"after-{done[-1]}") if done else prepared_as(inputs, "prepared")
    for number in range(done[-1] + 1 if done else 0, PARTS):
        calibrate(prepared, [batches()[number]], progress=False)
        save_prepared(prepared, work / f"after-{number}")
    return digest([of_prepared(prepared), *sorted(os.listdir(work))])


def round_once(inputs: Path, work: Path) -> str:
    if not (work / "rounded").exists():
        prepared = prepared_as(inputs, "calibrated")
        round_weights(prepared, batches(), progress=False)
        save_prepared(prepared, work / "rounded")
    return digest([of_prepared(load_prepared(work / "rounded")), *sorted(os.listdir(work))])


def reconstruct_resumed(inputs: Path, work: Path) -> str:
    prepared = prepared_as(inputs, "calibrated")
    config = ReconstructionConfig(weight_steps=12, act_steps=6, batch_size=4, typical_loss=0)
    reconstruct(prepared, batches(), config, resume_dir=work / "units", cache_dir=work, progress=False)
    return of_prepared(prepared)


def collect(inputs: Path, work: Path) -> str:
    data = collect_calibration_data(
        network(),
        scheduler=DDIMScheduler(),
        num_samples=24,
        num_inference_steps=8,
        batch_size=1,
        seed=0,
        resume_dir=work / "data",
        progress=False,
    )
    return digest(value for batch in data for _, value in sorted(batch.items()))


SOURCE = """
from diffusers import DDIMScheduler
from tests.faults.operations import network as load_unet

SAMPLE_SHAPE = 3, 8, 8

def make_scheduler(steps):
    scheduler = DDIMScheduler()
    scheduler.set_timesteps(steps)
    return scheduler
"""


def quantize_whole(inputs: Path, work: Path) -> str:
    """From the file to the saved folder, every phase of it kept in one work folder."""
    file = inputs / "source.py"
    file.write_text(SOURCE)
    config = QDiffConfig(weight_bits=4, timestep_bins=2)
    learning = ReconstructionConfig(weight_steps=6, act_steps=3, batch_size=4, typical_loss=0)
    job = Job(config, SampleRequest(12, 6), rows=48, reconstruction=learning)
    kept.APART = 0.0  # after every batch
    quantize(resolve(str(file)), job, work / "saved", resume_dir=work / "kept", progress=False)
    files = sorted((work / "saved").iterdir())
    of_files = [hashlib.sha256(each.read_bytes()).hexdigest() for each in files]
    return digest([*of_files, *(each.name for each in files), *sorted(os.listdir(work))])


def check_whole(inputs: Path, work: Path) -> None:
    """The saved folder is there when it is whole."""
    if (work / "saved").exists():
        load_qdiff(work / "saved", "reference")


def build_kernels(inputs: Path, work: Path) -> str:
    os.environ |= {"CXX": str(inputs / "compiler"), "QDIFF_KERNELS_CACHE": str(work / "cache")}
    built = status()
    assert built.library is not None, built.reason
    assert built.operators is not None
    return hashlib.sha256(built.library.read_bytes() + built.operators.read_bytes()).hexdigest()


# Stands in for a compiler that takes a while and writes its results bit by bit.
COMPILER = """#!/bin/sh
[ "$1" = --version ] && echo "stand-in 1" && exit
for word; do [ "$before" = -o ] && made="$word"; before="$word"; done
case " $* " in
*"-soname"*) echo "$made" > "$made" ;;
*" -shared "*)
    library="{libraries}/$(basename "$made")"
    size=$(wc -c < "$library")
    : > "$made"
    for part in 0 1 2 3 4 5 6 7; do
        dd if="$library" bs=$((size / 8 + 1)) skip=$part count=1 >> "$made" 2> /dev/null
        sleep 0.02
    done ;;
*) sleep 0.05 && echo "$made" > "$made" ;;
esac
"""


@dataclass(frozen=True)
class Operation:
    run: Callable[[Path, Path], str]
    check: Callable[[Path, Path], None] = lambda inputs, work: None


OPERATIONS = {
    "save": Operation(save, check_saved),
    "calibrate": Operation(calibrate_in_parts),
    "round": Operation(round_once),
    "reconstruct": Operation(reconstruct_resumed),
    "collect": Operation(collect),
    "quantize": Operation(quantize_whole, check_whole),
    "build": Operation(build_kernels),
}
