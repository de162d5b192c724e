"""Recorded network inputs `(x_t, t, conditioning)`, and the folder they are kept in."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, overload

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from qdiff_fx.atomic import replacing_file
from qdiff_fx.calibration.nested import Layout, layout_of_names
from qdiff_fx.calibration.record import Record, as_record
from qdiff_fx.errors import ArtifactError, CalibrationError

Batch = Mapping[str, Any]
Timesteps = Literal["first", "middle", "last", "uniform"]

FILE_NAME = "calibration.safetensors"
FORMAT = "qdiff_fx calibration data"
VERSION = 1
TIMESTEP, FINGERPRINT = "timestep_argument", "fingerprint"
"""In the metadata of what was recorded: which argument is the timestep, and digests of what it depends on."""
GOLDEN = (5**0.5 - 1) / 2
"""Steps of it around a circle leave no part of that out for long: where to begin at each timestep."""


class CalibrationData(Sequence[Batch]):
    """A sequence of batches, each a mapping of the network's own `forward` arguments, nested as the network got them.

    Tensors are on the CPU; see `Record` for which of their rows are samples. Batches may share tensors (the prompt's
    embedding is the same at every step): memory and files hold them once.

    Args:
        records: the batches, as recorded.
        metadata: where they come from; anything JSON can hold.
    Raises:
        CalibrationError: an argument is nothing that can be kept.
    """

    def __init__(self, records: Sequence[Batch | Record], metadata: Mapping[str, Any] | None = None):
        self._records = tuple(each if isinstance(each, Record) else as_record(each) for each in records)
        self.metadata = dict(metadata or {})

    def __len__(self) -> int:
        return len(self._records)

    @overload
    def __getitem__(self, index: int) -> Batch: ...
    @overload
    def __getitem__(self, index: slice) -> CalibrationData: ...
    def __getitem__(self, index: int | slice) -> Batch | CalibrationData:
        if isinstance(index, slice):
            return CalibrationData(self._records[index], self.metadata)
        return self._records[index].arguments

    def __repr__(self) -> str:
        rows = sum(record.count for record in self._records)
        return f"CalibrationData({len(self)} batches, {rows} samples, {self.nbytes:,} bytes)"

    @property
    def timestep(self) -> str | None:
        """The argument that holds the timesteps, where its recorder knew it."""
        return str(self.metadata.get(TIMESTEP, "")) or None

    @property
    def nbytes(self) -> int:
        """Memory footprint of all tensors, shared ones counted once."""
        return sum(tensor.nbytes for tensor in self.tensors)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Of all batches, shared ones once."""
        return tuple(self._tensors().values())

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """The same samples in batches of at most `batch_size`, never mixing timesteps, in order of recording.

        A batch at one timestep is what a sampler feeds the network, and the fastest for observers. Batches that do not
        divide into their samples stay as they were recorded.
        """
        if batch_size < 1:
            raise CalibrationError(f"batches of {batch_size} samples are not possible", where="batch_size")
        groups: dict[Any, list[Record]] = {}
        for number, record in enumerate(self._records):
            groups.setdefault(record.kind(self.timestep) or number, []).append(record)
        for group in groups.values():
            joined = Record.joined(group)
            step = batch_size if joined.divides else joined.count
            for start in range(0, joined.count, step):
                yield joined.rows(range(start, min(start + step, joined.count))).arguments

    def rebatched(self, batch_size: int) -> CalibrationData:
        """The same samples, recorded as in `batches`."""
        return CalibrationData(list(self.batches(batch_size)), self.metadata)

    def select(self, timesteps: Timesteps, steps: int) -> CalibrationData:
        """Only the batches at `steps` of the recorded timesteps.

        "first" are the noisiest timesteps (where sampling starts), "last" the cleanest, "middle" those between,
        "uniform" spreads over the trajectory. The paper shows that all but "uniform" overfit.
        """
        at = [record.timestep(self.timestep) for record in self._records]
        recorded = sorted(set(at), reverse=True)
        if timesteps not in (*_STARTS, "uniform") or not 1 <= steps <= len(recorded):
            raise CalibrationError(
                f"cannot select {steps} {timesteps!r} timesteps of {len(recorded)}",
                where="select",
                fix="Choose 'first', 'middle', 'last' or 'uniform', and 1 to that many steps",
            )
        if timesteps == "uniform":
            chosen = {recorded[round(index)] for index in torch.linspace(0, len(recorded) - 1, steps).tolist()}
        else:
            start = int(_STARTS[timesteps] * (len(recorded) - steps))
            chosen = set(recorded[start : start + steps])
        kept = [record for record, timestep in zip(self._records, at, strict=True) if timestep in chosen]
        return CalibrationData(kept, self.metadata | {"selected": [timesteps, steps]})

    def spread(self, rows: int | None) -> CalibrationData:
        """So many of the samples, or all where there are fewer; None: all of them.

        As many of every timestep as of every other, or one more, so that none is left out as long as there are as many
        rows as timesteps; where there are not, the last timestep is among those that are taken. Those of a timestep are
        spread evenly over what was recorded there, over trajectories, and begin elsewhere at the next timestep. Of
        batches that do not divide into their samples all are taken where one is.
        """
        if rows is None or not len(self):
            return self
        at: dict[float, list[tuple[int, int]]] = {}
        for number, record in enumerate(self._records):
            at.setdefault(record.timestep(self.timestep), []).extend((number, row) for row in range(record.count))
        chosen: dict[int, list[int]] = {}
        for turn, found in enumerate(at.values()):
            wanted = min(len(found), rows * (turn + 1) // len(at) - rows * turn // len(at))
            first = int(turn * GOLDEN % 1 * len(found))
            for index in range(wanted):
                number, row = found[(first + index * len(found) // wanted) % len(found)]
                chosen.setdefault(number, []).append(row)
        records = [self._records[number].rows(sorted(places)) for number, places in sorted(chosen.items())]
        return CalibrationData(records, self.metadata | {"rows": rows})

    def by_timestep(self) -> list[int]:
        """The numbers of all batches, those at the largest timesteps first."""
        return sorted(range(len(self)), key=lambda number: -self._records[number].timestep(self.timestep))

    def at(self, numbers: Sequence[int]) -> CalibrationData:
        """The batches of these numbers."""
        return CalibrationData([self._records[number] for number in numbers], self.metadata)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write `folder/calibration.safetensors`; a reader sees the old file or the new one, never half of one.

        Raises:
            ArtifactError: it cannot be written, or the disk is full.
        """
        path = Path(folder) / FILE_NAME
        description, tensors = self.to_tensors()
        header = {"format": FORMAT, "version": VERSION, **description}
        with replacing_file(path, expected_bytes=self.nbytes) as draft:
            # Cloned, because safetensors refuses tensors that are views of one another.
            stored = {key: tensor.clone().contiguous() for key, tensor in tensors.items()}
            save_file(stored, draft, metadata={"qdiff_fx": json.dumps(header)})

    def to_tensors(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Everything in it: what JSON can hold, and tensors by names that this refers to; shared ones once."""
        tensors = self._tensors()
        keys = {identity: f"tensor_{index}" for index, identity in enumerate(tensors)}
        records = [{name: keys[id(tensor)] for name, tensor in record.tensors.items()} for record in self._records]
        layouts: dict[str, int] = {}
        at = [layouts.setdefault(json.dumps(record.layout), len(layouts)) for record in self._records]
        kinds = {"layouts": [json.loads(each) for each in layouts], "layout_of_record": at}
        named = {keys[identity]: tensor for identity, tensor in tensors.items()}
        return {"metadata": self.metadata, "records": records, **kinds}, named

    @staticmethod
    def of_tensors(description: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> CalibrationData:
        """What `to_tensors` took apart."""
        records = [
            Record({name: tensors[key] for name, key in record.items()}, _layout(description, number, record))
            for number, record in enumerate(description["records"])
        ]
        return CalibrationData(records, description["metadata"])

    @staticmethod
    def load(folder: str | os.PathLike[str]) -> CalibrationData:
        """Read what `save` wrote.

        Raises:
            ArtifactError: the file is missing, damaged, or of another format or version.
        """
        path = Path(folder) / FILE_NAME
        if not path.is_file():
            raise ArtifactError(f"there is no {FILE_NAME}", where=str(folder), fix="Save CalibrationData there first")
        try:
            with safe_open(path, framework="pt") as file:
                header = json.loads((file.metadata() or {}).get("qdiff_fx", "{}"))
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
        except (SafetensorError, json.JSONDecodeError) as error:
            raise ArtifactError(f"the file is damaged ({error})", where=str(path), fix="Record it again") from error
        if (header.get("format"), header.get("version")) != (FORMAT, VERSION):
            raise ArtifactError(
                f"expected {FORMAT!r} version {VERSION}, found {header.get('format')!r} {header.get('version')!r}",
                where=str(path),
                fix="Record it again with this version",
            )
        return CalibrationData.of_tensors(header, tensors)

    def _tensors(self) -> dict[int, Tensor]:
        return {id(tensor): tensor for record in self._records for tensor in record.tensors.values()}


_STARTS = {"first": 0.0, "middle": 0.5, "last": 1.0}


def _layout(description: Mapping[str, Any], number: int, names: Mapping[str, Any]) -> Layout:
    """What the first release saved has only names."""
    if "layouts" not in description:
        return layout_of_names(names)
    layout: Layout = description["layouts"][description["layout_of_record"][number]]
    return layout
