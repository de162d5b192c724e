"""Processes that share a job: what they exchange, and how they fail."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from in_threads import in_threads

from qdiff_fx.distributed import ALONE, Workers
from qdiff_fx.errors import CalibrationError, WorkerError

ROOT = Path(__file__).parents[1]
CUSTOM = ROOT / "examples" / "custom_unet.py"


@pytest.mark.parametrize("count", [1, 2, 3])
def test_shares_are_everything_once(count: int) -> None:
    shares = [Workers(rank, count).share(range(7)) for rank in range(count)]
    assert sorted(item for share in shares for item in share) == list(range(7))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_everybody_gets_what_all_have_come_to() -> None:
    def work(workers: Workers) -> object:
        mine = torch.full((2, 3), float(workers.rank), dtype=torch.bfloat16)
        workers.barrier()
        found = workers.gather({"rank": workers.rank}, {"x": mine.T, "view": mine[1:]})
        return [(report, tensors["x"].shape, float(tensors["view"].sum())) for report, tensors in found]

    expected = [({"rank": rank}, (3, 2), 3.0 * rank) for rank in range(3)]
    assert in_threads(3, work) == [expected] * 3


def test_integers_add_up_on_their_owner_and_nothing_else_is_added() -> None:
    def work(workers: Workers) -> int:
        total = torch.tensor([[workers.rank + 1]], dtype=torch.int32)
        workers.add_up(total, 1)
        return int(total) if workers.rank == 1 else 0

    assert in_threads(3, work) == [0, 6, 0]
    with pytest.raises(TypeError, match="only integers"):
        ALONE.add_up(torch.ones(1), 0)


def test_the_leading_one_decides() -> None:
    assert in_threads(3, lambda workers: workers.agreed(workers.rank + 5)) == [5, 5, 5]


def test_alone_nothing_is_sent() -> None:
    ALONE.barrier()
    ((report, tensors),) = ALONE.gather([1], {"x": torch.ones(2)})
    assert (report, tensors["x"].tolist()) == ([1], [1, 1])


def test_an_error_of_one_reaches_all() -> None:
    def work(workers: Workers) -> None:
        with workers.together():
            if workers.rank == 1:
                raise CalibrationError("it holds NaN", where="batch 3")
            workers.barrier()

    first, second, third = in_threads(3, work)
    assert isinstance(second, CalibrationError)
    for other in (first, third):
        assert isinstance(other, WorkerError)
        assert str(other) == "process 1 of 3: batch 3: it holds NaN."


def test_one_that_is_gone_is_noticed() -> None:
    class Broken:
        def exchange(self, payload: bytes) -> list[bytes]:
            raise RuntimeError("[/gloo/pair.cc:553] Connection closed by peer [10.0.0.2]:3451. Check the logs\nmore")

        def left(self) -> None:
            return None

    expected = r"one of the 2 processes is gone \(Connection closed by peer \[10.0.0.2\]:3451\)\. See .*work folder"
    with pytest.raises(WorkerError, match=expected):
        Workers(0, 2, Broken()).barrier()


def command(count: int, *arguments: object) -> dict[str, Any]:
    """What subprocess takes to run the command in so many processes."""
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
    words += ["-m", "qdiff_fx", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return {"args": words, "cwd": ROOT, "env": environment, "text": True}


def torchrun(count: int, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(**command(count, *arguments), capture_output=True, check=False)


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.mark.slow
def test_the_same_bytes_from_one_two_and_three_processes(tmp_path: Path) -> None:
    written = []
    for count in (1, 2, 3):
        out = tmp_path / str(count)
        options = ("--steps", 3, "--samples", 9, "--weight-bits", 4, "--resume", tmp_path / f"work-{count}")
        done = torchrun(count, "quantize", CUSTOM, *options, "--out", out)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("wrote ") == 1
        written.append(contents(out))
    assert written[0] == written[1] == written[2]
    other = torchrun(2, "quantize", CUSTOM, *options, "--out", tmp_path / "other")
    assert other.returncode != 0
    assert other.stderr.count("error: ") == 1
    assert "it was begun with another number of processes" in other.stderr


@pytest.mark.slow
def test_bits_are_chosen_alike_by_one_and_two_processes(tmp_path: Path) -> None:
    written = []
    for count in (1, 2):
        out = tmp_path / f"{count}.json"
        options = ("--steps", 3, "--samples", 2, "--probe-steps", 2, "--target-size", "190kB", "--bits", "2,4,8")
        done = torchrun(count, "tune", CUSTOM, *options, "--out", out)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("wrote ") == 1
        written.append(out.read_bytes())
    assert written[0] == written[1]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_one_that_is_killed_ends_all_and_the_folder_goes_on(tmp_path: Path) -> None:
    options = ("--steps", 3, "--samples", 9, "--weight-bits", 4)
    given = ("quantize", CUSTOM, *options, "--resume", tmp_path / "work", "--out", tmp_path / "two")
    running = subprocess.Popen(**command(2, *given), stderr=subprocess.PIPE)
    while running.poll() is None and not (tmp_path / "work" / "samples").exists():
        time.sleep(0.02)
    children = Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()
    os.kill(int(children[-1]), signal.SIGKILL)
    said = running.communicate()[1]
    assert running.returncode != 0
    assert said.count("error: ") == 1
    assert "processes is gone" in said
    done = torchrun(2, *given)
    assert done.returncode == 0, done.stderr
    alone = torchrun(1, "quantize", CUSTOM, *options, "--out", tmp_path / "one")
    assert alone.returncode == 0, alone.stderr
    assert contents(tmp_path / "two") == contents(tmp_path / "one")
