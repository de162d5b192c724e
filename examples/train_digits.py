"""Train the bundled digits model: a class-conditional diffusion UNet and the classifier that judges it.

    python examples/train_digits.py --data mnist.npz --out runs/digits              # train, or resume
    python examples/train_digits.py --data mnist.npz --out runs/digits --evaluate   # measure the run
    python examples/train_digits.py --data mnist.npz --shipped                      # measure the package's

`--data` is a NumPy archive with train_images (N, 28, 28) uint8, train_labels (N,), test_images, test_labels.
`--out` receives `state.json` and `state-<step>.safetensors` (to resume from), `weights/` (the exported model,
as the package ships it) and `samples.png`. Every random draw of a step follows from the seed and the step's
number, so an interrupted run that is resumed ends with the weights of an uninterrupted one.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from tqdm import tqdm

from qdiff_fx.atomic import write_text
from qdiff_fx.bundled import digits
from qdiff_fx.bundled.modules import (
    NULL_LABEL,
    DigitClassifier,
    DigitEmbedding,
    build_digits_scheduler,
    build_digits_unet,
)


@dataclass(frozen=True)
class Split:
    """Images (N, 28, 28) uint8 and labels (N,) int64."""

    images: torch.Tensor
    labels: torch.Tensor

    def batch(self, index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """index (B,) -> images (B, 1, 32, 32) in [-1, 1], labels (B,)."""
        pixels = self.images[index].float().div(127.5).sub(1.0).unsqueeze(1)
        return F.pad(pixels, (2, 2, 2, 2), value=-1.0), self.labels[index]


class Denoiser(nn.Module):
    """The UNet with the class embedding: what the diffusion loss trains."""

    def __init__(self) -> None:
        super().__init__()
        self.unet: UNet2DConditionModel = build_digits_unet()
        self.embedding = DigitEmbedding()

    def forward(self, noisy: torch.Tensor, t: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """noisy (B, 1, 32, 32), t (B,), labels (B,) -> predicted noise (B, 1, 32, 32)."""
        return self.unet(noisy, t, encoder_hidden_states=self.embedding(labels)).sample


def read_splits(path: Path) -> tuple[Split, Split]:
    """The training and test splits of the archive."""
    with np.load(path, allow_pickle=False) as archive:
        train, test = (
            Split(
                torch.from_numpy(archive[f"{name}_images"]),
                torch.from_numpy(archive[f"{name}_labels"]).long(),
            )
            for name in ("train", "test")
        )
    return train, test


def step_generator(seed: int, step: int) -> torch.Generator:
    """The random source of one training step."""
    return torch.Generator().manual_seed(seed * 1_000_003 + step)


def learning_rate(step: int, steps: int, peak: float, warmup: int = 100) -> float:
    """Linear warm-up, then a cosine down to one hundredth of the peak."""
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, step: int, decay: float) -> None:
    """Move the running average of the weights towards the current ones; early steps move it faster."""
    weight = 1.0 - min(decay, (1 + step) / (10 + step))
    for target, source in zip(average.parameters(), model.parameters(), strict=True):
        target.lerp_(source, weight)


class DenoiserTraining:
    """The state of a diffusion training run, and its checkpoints."""

    def __init__(self, args: argparse.Namespace) -> None:
        torch.manual_seed(args.seed)
        self.args = args
        self.model = Denoiser()
        self.average = Denoiser().requires_grad_(False)
        self.average.load_state_dict(self.model.state_dict())
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=args.lr, weight_decay=0.0)
        self.scheduler = build_digits_scheduler()
        self.step = 0

    def train_step(self, data: Split) -> float:
        """One optimizer step on a random batch; returns the loss."""
        args, source = self.args, step_generator(self.args.seed, self.step)
        images, labels = data.batch(torch.randint(len(data.labels), (args.batch,), generator=source))
        dropped = torch.rand(args.batch, generator=source) < args.drop_labels
        labels = labels.masked_fill(dropped, NULL_LABEL)
        t = torch.randint(self.scheduler.config.num_train_timesteps, (args.batch,), generator=source)
        noise = torch.randn(images.shape, generator=source)
        noisy = self.scheduler.add_noise(images, noise, t)

        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step, args.steps, args.lr)
        with torch.autocast("cpu", torch.bfloat16, enabled=args.bf16):
            predicted = self.model(noisy, t, labels)
        loss = F.mse_loss(predicted.float(), noise)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        update_average(self.average, self.model, self.step, args.ema)
        self.step += 1
        return float(loss.detach())

    def save(self, folder: Path) -> None:
        """Write a checkpoint; `state.json` names the tensors' file and is replaced last."""
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {f"model.{key}": value for key, value in self.model.state_dict().items()}
        tensors |= {f"average.{key}": value for key, value in self.average.state_dict().items()}
        for index, slots in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{slot}": value for slot, value in slots.items()}
        name = f"state-{self.step:06d}.safetensors"
        save_file({key: value.contiguous() for key, value in tensors.items()}, folder / name)
        state = {"step": self.step, "tensors": name, "settings": settings(self.args)}
        write_text(folder / "state.json", json.dumps(state, indent=2))
        for old in folder.glob("state-*.safetensors"):
            if old.name != name:
                old.unlink()

    def load(self, folder: Path) -> bool:
        """Take up the checkpoint in the folder; False if there is none."""
        if not (folder / "state.json").is_file():
            return False
        state = json.loads((folder / "state.json").read_text())
        if state["settings"] != settings(self.args):
            raise SystemExit(f"{folder} holds a run with other settings: {state['settings']}; choose another --out")
        tensors = load_file(folder / state["tensors"])
        self.model.load_state_dict(part(tensors, "model."))
        self.average.load_state_dict(part(tensors, "average."))
        slots: dict[int, dict[str, torch.Tensor]] = {}
        for key, value in part(tensors, "optimizer.").items():
            index, slot = key.split(".")
            slots.setdefault(int(index), {})[slot] = value
        self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": slots})
        self.step = state["step"]
        return True


def settings(args: argparse.Namespace) -> dict[str, float | int | bool]:
    """The options that decide the weights of a run."""
    return {name: getattr(args, name) for name in ("seed", "steps", "batch", "lr", "ema", "drop_labels", "bf16")}


def part(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """The entries under a prefix, without it."""
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def train_denoiser(args: argparse.Namespace, data: Split) -> Denoiser:
    """Train, or go on training, up to the step or minute allowed; returns the averaged weights."""
    run = DenoiserTraining(args)
    if run.load(args.out):
        print(f"resuming at step {run.step}")
    last = min(args.steps, args.until or args.steps)
    begin = saved = time.monotonic()
    smooth = None
    with tqdm(total=args.steps, initial=run.step, desc="unet", mininterval=10.0) as bar:
        while run.step < last and time.monotonic() - begin < args.minutes * 60:
            loss = run.train_step(data)
            smooth = loss if smooth is None else 0.98 * smooth + 0.02 * loss
            bar.set_postfix(loss=f"{smooth:.4f}", refresh=False)
            bar.update()
            if time.monotonic() - saved > args.save_every * 60:
                run.save(args.out)
                saved = time.monotonic()
    run.save(args.out)
    return run.average.eval()


def train_classifier(args: argparse.Namespace, data: Split) -> DigitClassifier:
    """Train the classifier for a few epochs, on images shifted by up to two pixels."""
    torch.manual_seed(args.seed)
    model = DigitClassifier().to(memory_format=torch.channels_last)
    per_epoch = max(1, len(data.labels) // args.batch)
    total = args.classifier_epochs * per_epoch
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-3, total_steps=max(1, total))
    source = torch.Generator().manual_seed(args.seed)
    order = torch.empty(0, dtype=torch.int64)
    for _ in tqdm(range(total), desc="classifier", mininterval=10.0):
        if len(order) < args.batch:
            order = torch.randperm(len(data.labels), generator=source)
        images, labels = data.batch(order[: args.batch])
        order = order[args.batch :]
        down, right = torch.randint(-2, 3, (2,), generator=source).tolist()
        loss = F.cross_entropy(model(images.roll((down, right), dims=(2, 3))), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval()


def classifier_for(args: argparse.Namespace, data: Split) -> DigitClassifier:
    """The classifier of the run: read if it was trained before, else trained now."""
    path = args.out / "classifier.safetensors"
    model = DigitClassifier().eval()
    if path.is_file():
        model.load_state_dict(load_file(path))
        return model
    model = train_classifier(args, data)
    args.out.mkdir(parents=True, exist_ok=True)
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, path)
    return model


@torch.no_grad()
def classifier_accuracy(classifier: DigitClassifier, data: Split) -> float:
    """The share of real images classified right."""
    right = 0
    for index in torch.arange(len(data.labels)).split(500):
        images, labels = data.batch(index)
        right += int((classifier(images).argmax(dim=1) == labels).sum())
    return right / len(data.labels)


@torch.no_grad()
def sample_accuracy(args: argparse.Namespace, folder: Path, sheet: Path | None) -> float:
    """The share of generated images classified as the digit asked for; writes a sheet of a hundred."""
    unet, classifier = digits.load_digits_unet(folder), digits.load_digit_classifier(folder)
    labels = torch.arange(args.samples) % 10
    images = torch.cat(
        [
            digits.sample_digits(unet, chunk, args.seed + number, args.sample_steps, args.guidance, folder)
            for number, chunk in enumerate(tqdm(labels.split(100), desc="samples", mininterval=10.0))
        ]
    )
    if sheet is not None:
        write_sheet(images[:100], sheet)
    return float((classifier(images).argmax(dim=1) == labels).float().mean())


def write_sheet(images: torch.Tensor, path: Path) -> None:
    """images (N, 1, 32, 32) in [-1, 1], N a multiple of ten or below it -> one picture, ten to a row."""
    columns = min(10, len(images))
    images = images[: len(images) // columns * columns]
    rows = images.reshape(-1, columns, 32, 32).permute(0, 2, 1, 3).reshape(-1, columns * 32)
    Image.fromarray(((rows / 2 + 0.5) * 255).round().to(torch.uint8).numpy()).save(path)


def report(args: argparse.Namespace, folder: Path, test: Split, sheet: Path | None) -> None:
    """Print the two figures that the model is accepted by, measured on the stored weights."""
    accuracy = classifier_accuracy(digits.load_digit_classifier(folder), test)
    print(f"classifier accuracy on {len(test.labels)} test images: {accuracy:.2%}")
    if args.samples:
        accuracy = sample_accuracy(args, folder, sheet)
        print(
            f"samples classified as the digit asked for: {accuracy:.2%} "
            f"({args.samples} samples, {args.sample_steps} steps, guidance {args.guidance})"
        )


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="MNIST as a NumPy archive")
    parser.add_argument("--out", type=Path, default=Path("runs/digits"), help="folder of the run")
    parser.add_argument("--only", choices=("classifier", "unet"), help="train one of the two networks")
    parser.add_argument("--evaluate", action="store_true", help="train nothing; measure the latest checkpoint")
    parser.add_argument("--shipped", action="store_true", help="train nothing; measure the package's own weights")
    parser.add_argument("--steps", type=int, default=3000, help="length of the run (and of its learning-rate curve)")
    parser.add_argument("--until", type=int, help="stop at this step; a later call resumes")
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop after this long; a later call resumes")
    parser.add_argument("--save-every", type=float, default=3.0, help="minutes between checkpoints")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--ema", type=float, default=0.998)
    parser.add_argument("--drop-labels", type=float, default=0.12, help="share of labels replaced by the null label")
    parser.add_argument("--bf16", action=argparse.BooleanOptionalAction, default=True, help="bfloat16 autocast")
    parser.add_argument("--classifier-epochs", type=int, default=4)
    parser.add_argument("--samples", type=int, default=500, help="generated images in the evaluation")
    parser.add_argument("--sample-steps", type=int, default=25)
    parser.add_argument("--guidance", type=float, default=digits.DEFAULT_GUIDANCE)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


def main() -> None:
    """Train or evaluate, as asked."""
    args = parse_args()
    torch.set_num_threads(args.threads)
    train, test = read_splits(args.data)
    if args.shipped:
        report(args, digits.FOLDER, test, sheet=None)
        return
    classifier = classifier_for(args, train)
    if args.only == "classifier":
        print(f"classifier accuracy on the test images: {classifier_accuracy(classifier, test):.2%}")
        return
    if args.evaluate:
        run = DenoiserTraining(args)
        if not run.load(args.out):
            raise SystemExit(f"no checkpoint in {args.out}")
        denoiser = run.average.eval()
    else:
        denoiser = train_denoiser(args, train)
    weights = args.out / "weights"
    digits.save_digits(weights, denoiser.unet, denoiser.embedding, build_digits_scheduler(), classifier)
    report(args, weights, test, args.out / "samples.png")


if __name__ == "__main__":
    main()
