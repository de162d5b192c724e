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
from qdiff_fx.calibration.nested import flatten, unflatten
from qdiff_fx.errors import ArtifactError, CalibrationError
from qdiff_fx.signature.roles import sample_argument, timestep_argument

Batch = Mapping[str, Any]
Timesteps = Literal["first", "middle", "last", "uniform"]

FILE_NAME = "calibration.safetensors"
FORMAT = "qdiff_fx calibration data"
VERSION = 1
TIMESTEP, FINGERPRINT = "timestep_argument", "fingerprint"
"""In the metadata of what was recorded: which argument is the timestep, and digests of what it depends on."""


class CalibrationData(Sequence[Batch]):
    """A sequence of batches, each a mapping of the network's own `forward` arguments to CPU tensors.

    All tensors of a batch share their first dimension R, the samples; see `as_record`. Batches may share tensors
    (the prompt's embedding is the same at every step): memory and files hold them once.

    Args:
        records: the batches, as recorded.
        metadata: where they come from; anything JSON can hold.
    Raises:
        CalibrationError: an argument is no tensor, or holds another number of samples.
    """

    def __init__(self, records: Sequence[Batch], metadata: Mapping[str, Any] | None = None):
        self._records = tuple(as_record(record) for record in records)
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
        return unflatten(self._records[index])

    def __repr__(self) -> str:
        rows = sum(_row_count(record) for record in self._records)
        return f"CalibrationData({len(self)} batches, {rows} samples, {self.nbytes:,} bytes)"

    @property
    def timestep(self) -> str | None:
        """The argument that holds the timesteps, where its recorder knew it."""
        return str(self.metadata.get(TIMESTEP, "")) or None

    @property
    def nbytes(self) -> int:
        """Memory footprint of all tensors, shared ones counted once."""
        return sum(tensor.nbytes for tensor in self._tensors().values())

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """The same samples in batches of at most `batch_size`, never mixing timesteps, in order of recording.

        A batch at one timestep is what a sampler feeds the network, and the fastest for observers.
        """
        if batch_size < 1:
            raise CalibrationError(f"batches of {batch_size} samples are not possible", where="batch_size")
        groups: dict[tuple[Any, ...], list[dict[str, Tensor]]] = {}
        for number, record in enumerate(self._records):
            groups.setdefault(_mixing_key(number, record, self.timestep), []).append(record)
        for group in groups.values():
            joined = {name: torch.cat([record[name] for record in group]) for name in group[0]}
            for start in range(0, _row_count(joined), batch_size):
                yield unflatten({name: tensor[start : start + batch_size] for name, tensor in joined.items()})

    def select(self, timesteps: Timesteps, steps: int) -> CalibrationData:
        """Only the batches at `steps` of the recorded timesteps.

        "first" are the noisiest timesteps (where sampling starts), "last" the cleanest, "middle" those between,
        "uniform" spreads over the trajectory. The paper shows that all but "uniform" overfit.
        """
        at = [_timestep_of(record, self.timestep) for record in self._records]
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
        spread evenly over what was recorded there, over trajectories, and begin elsewhere at the next timestep.
        """
        if rows is None or not len(self):
            return self
        at: dict[float, list[tuple[int, int]]] = {}
        for number, record in enumerate(self._records):
            at.setdefault(_timestep_of(record, self.timestep), []).extend((number, row) for row in _rows_of(record))
        chosen: dict[int, list[int]] = {}
        for turn, found in enumerate(at.values()):
            wanted = min(len(found), rows * (turn + 1) // len(at) - rows * turn // len(at))
            first = int(turn * GOLDEN % 1 * len(found))
            for index in range(wanted):
                number, row = found[(first + index * len(found) // wanted) % len(found)]
                chosen.setdefault(number, []).append(row)
        records = [_some(self._records[number], sorted(places)) for number, places in sorted(chosen.items())]
        return CalibrationData(records, self.metadata | {"rows": rows})

    def by_timestep(self) -> list[int]:
        """The numbers of all batches, those at the largest timesteps first."""
        return sorted(range(len(self)), key=lambda number: -_timestep_of(self._records[number], self.timestep))

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
        records = [{name: keys[id(tensor)] for name, tensor in record.items()} for record in self._records]
        named = {keys[identity]: tensor for identity, tensor in tensors.items()}
        return {"metadata": self.metadata, "records": records}, named

    @staticmethod
    def of_tensors(description: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> CalibrationData:
        """What `to_tensors` took apart."""
        data = CalibrationData([], description["metadata"])
        data._records = tuple({name: tensors[key] for name, key in record.items()} for record in description["records"])
        return data

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
        return {id(tensor): tensor for record in self._records for tensor in record.values()}


GOLDEN = (5**0.5 - 1) / 2
_STARTS = {"first": 0.0, "middle": 0.5, "last": 1.0}


def _rows_of(record: Mapping[str, Tensor]) -> range:
    return range(_row_count(record))


def _some(record: Mapping[str, Tensor], rows: list[int]) -> Mapping[str, Tensor]:
    """Some rows of a record; itself where they are all."""
    if len(rows) == _row_count(record):
        return record
    return {name: tensor[torch.tensor(rows)] for name, tensor in record.items()}


def as_record(arguments: Mapping[str, Any], timestep: str | None = None) -> dict[str, Tensor]:
    """Forward arguments -> flat CPU tensors that all start with the R samples of "sample".

    A timestep given as a number or for all samples at once becomes [R]; so does anything of first dimension 1.

    Args:
        timestep: the argument that holds it, where that is known.
    """
    name = timestep or timestep_argument(arguments)
    if name is not None and isinstance(arguments.get(name), (int, float)):
        arguments = {**arguments, name: torch.tensor(arguments[name])}
    # A tensor that needs neither stays the same object, by which shared tensors are recognised.
    flat = {
        name: tensor.detach().cpu() if tensor.requires_grad or not tensor.is_cpu else tensor
        for name, tensor in flatten(arguments).items()
    }
    rows = _row_count(flat)
    return {name: _expanded(name, tensor, rows) for name, tensor in flat.items()}


def _timestep_of(record: Mapping[str, Tensor], known: str | None) -> float:
    """The timestep of a batch's first sample; of a network without any, one and the same for all."""
    name = known or timestep_argument(record)
    return 0.0 if name is None else float(record[name].flatten()[0])


def _row_count(record: Mapping[str, Tensor]) -> int:
    name = sample_argument(record)
    return 1 if name is None or not record[name].dim() else record[name].shape[0]


def _expanded(name: str, tensor: Tensor, rows: int) -> Tensor:
    if tensor.dim() == 0:
        return tensor.repeat(rows)
    if tensor.shape[0] == rows:
        return tensor
    if tensor.shape[0] == 1:
        return tensor.repeat(rows, *[1] * (tensor.dim() - 1))
    raise CalibrationError(
        f"it holds {tensor.shape[0]} samples where the batch has {rows}",
        where=f"argument {name!r}",
        fix="Give one row per sample, or one for all of them",
    )


def _mixing_key(number: int, record: Mapping[str, Tensor], known: str | None) -> tuple[Any, ...]:
    """Equal for batches that may be joined: one and the same timestep, and tensors of the same kind."""
    layout = tuple(sorted((name, tensor.shape[1:], tensor.dtype) for name, tensor in record.items()))
    name = known or timestep_argument(record)
    timesteps = torch.empty(0) if name is None else record[name].unique()
    return (timesteps.item() if timesteps.numel() == 1 else f"batch {number}", layout)
