"""A few of the kills of `python -m tests.faults`; and what else a process may do to a network it runs."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from torch import Tensor

from qdiff_fx import QDiffConfig, QuantizedUNet, calibrate, convert_qdiff, prepare_qdiff
from qdiff_fx.backends.native.runtime.reuse import Remembered
from tests.faults.operations import OPERATIONS, batches, network

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.parametrize("name", OPERATIONS)
def test_killed_at_random_moments(name: str) -> None:
    """In a process of its own: it forks, which this one may not do any more."""
    command = [sys.executable, "-m", "tests.faults", "--kills", "4", name]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def quantized() -> QuantizedUNet:
    prepared = prepare_qdiff(network(), QDiffConfig(timestep_bins=2), batches(1)[0])
    calibrate(prepared, batches(), progress=False)
    return convert_qdiff(prepared, "native")


@pytest.fixture(scope="module")
def expected(quantized: QuantizedUNet) -> list[Tensor]:
    return [quantized(**batch) for batch in batches()]


def same(quantized: QuantizedUNet, expected: list[Tensor]) -> bool:
    return all(torch.equal(quantized(**batch), result) for batch, result in zip(batches(), expected, strict=True))


def in_a_fork(quantized: QuantizedUNet, expected: list[Tensor]) -> int:
    """The status with which a forked process ends that runs the network."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        child = os.fork()
    if not child:
        os._exit(0 if same(quantized, expected) else 1)
    ended, until = 0, time.monotonic() + 60
    while not ended and time.monotonic() < until:
        ended, status = os.waitpid(child, os.WNOHANG)
        time.sleep(0.01)
    if not ended:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert ended, "it hangs"
    return status


@pytest.mark.skipif(sys.platform == "win32", reason="there is no fork")
def test_a_forked_process_runs_it_on(quantized: QuantizedUNet, expected: list[Tensor]) -> None:
    assert in_a_fork(quantized, expected) == 0


@pytest.mark.skipif(sys.platform == "win32", reason="there is no fork")
def test_a_process_is_forked_while_a_thread_looks_up_what_is_remembered(
    quantized: QuantizedUNet, expected: list[Tensor]
) -> None:
    remembering = [module for module in quantized._run[0].modules() if isinstance(module, Remembered)]
    assert remembering
    with ExitStack() as held:
        for module in remembering:
            held.enter_context(module._lock)
        assert in_a_fork(quantized, expected) == 0


def test_an_interrupted_call_leaves_it_whole(quantized: QuantizedUNet, expected: list[Tensor]) -> None:
    # Processes that run in the background are started with interrupts ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
        with pytest.raises(KeyboardInterrupt):
            [same(quantized, expected) for _ in itertools.repeat(None)]
    finally:
        signal.signal(signal.SIGINT, before)
    assert same(quantized, expected)


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_does_not_grow_with_images(quantized: QuantizedUNet) -> None:
    """Of three batches and four sizes in turn, each along a few steps of its own."""

    def draw(count: int) -> None:
        for number in range(count):
            x = torch.randn(1 + number % 3, 3, 8 * (1 + number % 4), 8)
            for step in range(0, 1000, 100):
                x = quantized(x, step).clamp(-3, 3)

    draw(50)
    before = _resident_bytes()
    draw(500)
    assert _resident_bytes() - before < 8 << 20
