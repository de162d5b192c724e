"""What the parts of a pipeline are called with while its calibration data are drawn."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qdiff_fx.calibration import CalibrationData
from qdiff_fx.calibration.data import FILE_NAME
from qdiff_fx.calibration.record import Record, as_record
from qdiff_fx.distributed import Workers
from qdiff_fx.errors import CalibrationError
from qdiff_fx.quant.digest import digest
from qdiff_fx.sampling.listener import Listener
from qdiff_fx.sampling.recorder import watching
from qdiff_fx.signature.roles import positional_names
from qdiff_fx.sources.parts import AUTOENCODER, CONTROLNET, ENCODER, Part

LATENTS = "latents"


class Heard:
    """Calls of the parts of a pipeline, each of them once, in an order that follows from what they are.

    So they are the same whoever drew them: several processes, or a run that was killed and one that went on.

    Args:
        pipe: its autoencoder, text encoders and ControlNets are listened to. Of an autoencoder the latents are heard;
            its encoder is called with the pictures that the decoder makes of them. ControlNets are called in every
            step, and what their results are scaled by is left out.
        parts: what is to be heard.
    """

    def __init__(self, pipe: Any, parts: Sequence[Part]):
        self._called = [part for part in parts if not part.inside]
        self._stepped = [part.name for part in parts if part.word == CONTROLNET]
        self._decoder = getattr(pipe, AUTOENCODER).decoder if len(self._called) < len(parts) else None
        self._listener = None if self._decoder is None else Listener(self._decoder, self._hear_latents)
        self._folder: Path | None = None
        self._calls: dict[str, dict[str, Record]] = {}
        self._tensors: dict[str, Tensor] = {}
        self.forget()

    def forget(self) -> None:
        """All that was heard so far."""
        self._tensors = {}
        self._calls = {part.name: {} for part in self._called}
        if self._listener is not None:
            self._calls[LATENTS] = {}

    @contextmanager
    def listening(self, folder: Path | None = None) -> Iterator[None]:
        """Inside the block; the decoder answers with zeros, but for its very first call.

        Args:
            folder: every call is kept there too, and known where it is there already.
        Raises:
            CalibrationError: latents are not finite.
        """
        self._folder = folder
        if folder is not None:
            for name, calls in self._calls.items():
                for file in sorted((folder / name).glob(f"*/{FILE_NAME}")):
                    calls[file.parent.name] = self._kept(CalibrationData.load(file.parent)._records[0])
        with ExitStack() as stack:
            if self._listener is not None:
                stack.enter_context(self._listener.listening())
            for part in self._called:
                stack.enter_context(watching(part.network, before=partial(self._hear_call, part)))
            yield

    def share(self, workers: Workers) -> None:
        """From here on every process knows what all of them heard."""
        if workers.count == 1:
            return
        for calls in self._calls.values():
            mine = CalibrationData(list(calls.values()))
            description, tensors = mine.to_tensors()
            for (keys, found), received in workers.gather([list(calls), description], tensors):
                calls.update(zip(keys, CalibrationData.of_tensors(found, received)._records, strict=True))

    @property
    def images(self) -> int | None:
        """Of how many latents and steps were heard; None where it is enough to begin: nobody listens to either."""
        found = [self._rows_of_a_step(name) for name in self._stepped]
        if LATENTS in self._calls:
            found.append(sum(record.count for record in self._calls[LATENTS].values()))
        return min(found, default=None)

    def _rows_of_a_step(self, name: str) -> int:
        """The fewest; guidance has two for an image."""
        rows = Counter[float]()
        for record in self._calls[name].values():
            rows[record.timestep(None)] += record.count
        return min(rows.values(), default=0)

    def data(self, part: Part, rows: int | None = None) -> CalibrationData:
        """What the part is called with, in its own floating type.

        Args:
            rows: so many, evenly chosen; None: all.
        Raises:
            CalibrationError: nothing was heard.
        """
        calls = self._calls[LATENTS if part.inside else part.name]
        if not calls:
            raise CalibrationError(
                "the pipeline did not call it while it was drawing",
                where=part.name,
                fix="Leave it out: parts= names the others",
            )
        found = CalibrationData([calls[key] for key in sorted(calls)]).spread(rows)
        if not part.inside:
            return found
        (name, *_), dtype = positional_names(part.network), next(part.network.parameters()).dtype
        inputs = [batch[LATENTS] for batch in found]
        if part.word == ENCODER:
            inputs = [self._picture(each) for batch in inputs for each in batch.split(1)]
        return CalibrationData([{name: each.to(dtype)} for each in inputs])

    @torch.no_grad()
    def _picture(self, latents: Tensor) -> Tensor:
        assert self._decoder is not None
        dtype = next(self._decoder.parameters()).dtype
        picture: Tensor = self._decoder(latents.to(dtype))
        return picture.clamp(-1, 1)

    def _hear_latents(self, latents: Tensor) -> None:
        if not bool(latents.isfinite().all()):
            raise CalibrationError(
                "the latents that the float pipeline came to hold NaN or infinity",
                where=f"{AUTOENCODER}.decoder",
                fix="Draw with it: its images are broken too. In float32 it may do better than in float16",
            )
        self._hear(LATENTS, {LATENTS: latents})

    def _hear_call(self, part: Part, inputs: dict[str, Any]) -> None:
        if part.word == CONTROLNET:
            from qdiff_fx.networks.controlnet import OUTSIDE

            inputs = {name: each for name, each in inputs.items() if name not in OUTSIDE}
        self._hear(part.name, inputs)

    def _hear(self, name: str, inputs: dict[str, Any]) -> None:
        copied = self._kept(as_record(inputs))
        key = digest([*(each for item in sorted(copied.tensors.items()) for each in item), repr(copied.layout)])
        if key in self._calls[name]:
            return
        self._calls[name][key] = copied
        if self._folder is not None:
            CalibrationData([copied]).save(self._folder / name / key)

    def _kept(self, record: Record) -> Record:
        """Copies of its tensors, each once: pictures and prompts are the same in every step."""
        tensors = {}
        for name, tensor in record.tensors.items():
            key = digest([tensor])
            if key not in self._tensors:
                self._tensors[key] = tensor.clone()
            tensors[name] = self._tensors[key]
        return Record(tensors, record.layout)
