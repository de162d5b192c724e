"""The instruction sets there are kernels for, and which of them this processor runs."""

from __future__ import annotations

import ctypes
import functools
import platform
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from qdiff_fx.errors import KernelError


@dataclass(frozen=True)
class Isa:
    """One instruction set.

    Attributes:
        name: as ``QDIFF_KERNELS`` takes it.
        sources: of its kernels; one of them defines ``kKernels``.
        needs: what the processor must have, as `torch.cpu.get_capabilities` names it.
        flags: of the compiler, for each machine that needs some.
    """

    name: str
    sources: tuple[str, ...]
    needs: tuple[str, ...] = ()
    flags: tuple[tuple[str, tuple[str, ...]], ...] = ()

    def flags_for(self, machine: str) -> tuple[str, ...]:
        """The compiler's flags for processors that `platform.machine()` calls so."""
        return dict(self.flags).get(machine, ())


_AVX2_FLAGS = ("-mavx2", "-mfma", "-mf16c")


_ARM = ("aarch64", "arm64")  # as Linux and as macOS call it


def _arm_flags(march: str) -> tuple[tuple[str, tuple[str, ...]], ...]:
    # Instructions moved apart before registers are given out need more of them than there are, and tiles spill.
    return tuple((machine, (march, "-fno-schedule-insns")) for machine in _ARM)


# Fastest first. A new instruction set adds a line here and its source.
ISAS = (
    Isa(
        "avx512_vnni",
        ("isa/attention_vnni.cpp", "isa/avx512_vnni.cpp"),
        ("avx512_f", "avx512_bw", "avx512_vl", "avx512_dq", "avx512_vnni", "fma3"),
        (("x86_64", ("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512vnni", "-mfma")),),
    ),
    Isa("avx_vnni", ("isa/avx_vnni.cpp",), ("avx2", "fma3", "f16c", "avx_vnni"), (("x86_64", _AVX2_FLAGS),)),
    # The same source, as processors run it that have these instructions in the other encoding only.
    Isa(
        "avx_vnni_evex",
        ("isa/avx_vnni.cpp",),
        ("avx2", "fma3", "f16c", "avx512_vl", "avx512_vnni"),
        (("x86_64", (*_AVX2_FLAGS, "-DQDIFF_EVEX")),),
    ),
    Isa("avx2", ("isa/avx2.cpp",), ("avx2", "fma3", "f16c"), (("x86_64", _AVX2_FLAGS),)),
    Isa("neon_i8mm", ("isa/neon_i8mm.cpp",), ("neon", "dot", "i8mm"), _arm_flags("-march=armv8.2-a+dotprod+i8mm")),
    Isa("neon_dotprod", ("isa/neon_dotprod.cpp",), ("neon", "dot"), _arm_flags("-march=armv8.2-a+dotprod")),
    Isa("neon", ("isa/neon.cpp",), ("neon",), _arm_flags("-march=armv8-a")),
    Isa("portable", ("isa/portable.cpp",)),
)

_HWCAP, _HWCAP2 = 16, 26  # <sys/auxv.h>
_ARM_BITS = {"neon": (_HWCAP, 1), "dot": (_HWCAP, 20), "i8mm": (_HWCAP2, 13)}  # <asm/hwcap.h>, in torch's names


@functools.cache
def supported_isas() -> tuple[str, ...]:
    """Names of those this processor runs, fastest first."""
    capabilities = _capabilities()
    return tuple(isa.name for isa in ISAS if all(capabilities.get(each, False) for each in isa.needs))


def _capabilities() -> Mapping[str, object]:
    if platform.machine() in _ARM and (told := _told_by_linux()):
        return told
    if hasattr(torch.cpu, "get_capabilities"):
        return torch.cpu.get_capabilities()
    # Older releases of torch tell less; processors that have the one have the others.
    avx2, vnni = torch.cpu._is_avx2_supported(), torch.cpu._is_vnni_supported()
    return dict.fromkeys(ISAS[0].needs, vnni) | dict.fromkeys(("avx2", "fma3", "f16c"), avx2)


def _told_by_linux() -> dict[str, object]:
    """What this ARM processor has, of what is asked for here; empty where the system does not say."""
    try:
        word = ctypes.CDLL(None).getauxval
    except (AttributeError, OSError):
        return {}
    word.argtypes, word.restype = [ctypes.c_ulong], ctypes.c_ulong
    return {name: bool(word(kind) >> bit & 1) for name, (kind, bit) in _ARM_BITS.items()}


def choose_isa(name: str = "") -> Isa:
    """The instruction set of that name, or the fastest; raises KernelError where this processor lacks it."""
    chosen = name or supported_isas()[0]
    if chosen not in supported_isas():
        known = {isa.name for isa in ISAS}
        cause = "this processor does not have it" if chosen in known else "there are no such kernels"
        raise KernelError(cause, where=chosen, fix=f"Choose one of {', '.join(supported_isas())}")
    return next(isa for isa in ISAS if isa.name == chosen)
