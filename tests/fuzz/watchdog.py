"""Numbered trials in a process of their own: one that dies or hangs is reported, and the others go on.

The worker is a command with three more arguments: a file, the first trial and the one after the last. It tells what it
is about to try by `Worker.trying`, and what it found by `Worker.found`.
"""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

LINE = 4096  # bytes of what is being tried
MEMORY = 6 << 30  # bytes a worker may ask for beyond what it has when it starts


@dataclass
class Worker:
    """The worker's end: a file that holds the number and the text of the trial it is at, then all that it found."""

    file: BinaryIO

    @classmethod
    def open(cls, path: str) -> Worker:
        """Of the file that the watchdog has made."""
        return cls(open(path, "r+b", buffering=0))  # noqa: SIM115, open as long as the process lives

    def trying(self, number: int, text: str) -> None:
        """Written before each trial."""
        os.pwrite(self.file.fileno(), f"{number} {text}".encode()[:LINE].ljust(LINE), 0)

    def found(self, fault: str) -> None:
        """Something to report."""
        os.pwrite(self.file.fileno(), fault.encode() + b"\n", max(LINE, os.fstat(self.file.fileno()).st_size))


def limit_memory() -> None:
    """What a worker calls before its first trial, once it has loaded what it needs."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    if used < 1 << 40:  # AddressSanitizer reserves terabytes for itself; it has a limit of its own
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))


def watch(command: Sequence[str], count: int, *, patience: float = 30.0) -> list[str]:
    """All faults of so many trials.

    Args:
        command: of the worker; the path of the file, the first trial and the number after the last are added.
        count: trials.
        patience: seconds that one may take.
    """
    faults: list[str] = []
    first = 0
    with tempfile.TemporaryDirectory() as folder:
        while first < count:
            path = Path(folder) / str(first)
            path.write_bytes(b"-1".ljust(LINE))
            end = _run([*command, str(path), str(first), str(count)], path, patience)
            content = path.read_bytes()
            faults += content[LINE:].decode(errors="replace").splitlines()
            number, _, text = content[:LINE].decode(errors="replace").strip().partition(" ")
            if not end:
                break
            faults.append(f"{end}: {text}")
            print(faults[-1], flush=True)
            first = max(first, int(number)) + 1
    return faults


def _run(command: Sequence[str], path: Path, patience: float) -> str:
    """How the worker ended: "" when it came to the end."""
    worker = subprocess.Popen(command)
    seen, since = b"", time.monotonic()
    while True:
        try:
            code = worker.wait(timeout=1.0)
            break
        except subprocess.TimeoutExpired:
            with path.open("rb") as file:
                now = file.read(LINE)
            if now != seen:
                seen, since = now, time.monotonic()
            elif time.monotonic() - since > patience * (
                5 if now.startswith(b"-1 ") else 1
            ):  # the first also imports torch
                worker.kill()
                worker.wait()
                return "hang"
    if code == 0:
        return ""
    return f"crash ({signal.Signals(-code).name})" if code < 0 else f"crash (exit code {code})"


def python(module: str, *arguments: str) -> list[str]:
    """The command that runs a module with this interpreter."""
    return [sys.executable, "-m", module, *arguments]
