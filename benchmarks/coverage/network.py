"""What a network of the table is, and the list of all of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

Built = tuple[Any, dict[str, Any]]
SCHEDULE = (981, 741, 501, 261, 21)
"""Timesteps along a schedule of 1000."""


@dataclass(frozen=True)
class Network:
    """One network.

    Attributes:
        family: whose network it is like.
        name: what of the family it shows.
        build: makes it (random weights) with example inputs of batch 2.
        timestep: the argument that is the timestep; empty where there is none.
        timesteps: values it has along a denoising trajectory.
    """

    family: str
    name: str
    build: Callable[[], Built]
    timestep: str = "timestep"
    timesteps: tuple[float, ...] = SCHEDULE

    @property
    def id(self) -> str:
        return f"{self.family}: {self.name}"

    def made(self) -> tuple[nn.Module, dict[str, Any]]:
        """The network in eval mode, and its example inputs."""
        model, inputs = self.build()
        return model.eval(), inputs


NETWORKS: list[Network] = []


def network(
    family: str, name: str, *, timestep: str = "timestep", timesteps: tuple[float, ...] = SCHEDULE
) -> Callable[[Callable[[], Built]], Callable[[], Built]]:
    """Lists the network a function builds."""

    def listed(build: Callable[[], Built]) -> Callable[[], Built]:
        NETWORKS.append(Network(family, name, build, timestep, timesteps))
        return build

    return listed
