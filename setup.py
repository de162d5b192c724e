"""What pyproject.toml cannot say: with QDIFF_WHEEL=x86_64 or aarch64 a wheel brings compiled kernels of that machine.

They are made with the compiler in CXX and the headers of the installed torch. Without the variable a wheel is the same
for all machines, and kernels are compiled when they are first used.
"""

import os
import re
import shutil
import sys
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

MACHINE = os.environ.get("QDIFF_WHEEL", "")
# Which releases of the C library come with a C++ library of at least such a version.
GLIBC_OF_GLIBCXX = ((25, 28), (28, 31), (29, 34), (30, 35))


class BuildWithKernels(build_py):
    """Adds the libraries of one machine."""

    def run(self):
        """As always, and then the libraries."""
        super().run()
        folder = libraries(Path(self.build_lib))
        shutil.rmtree(folder, ignore_errors=True)  # of another machine, from before
        if MACHINE and not self.editable_mode:
            sys.path.insert(0, str(Path(__file__).parent))
            from qdiff_fx.kernels.build import build_package

            build_package(MACHINE, folder)


class OfMachine(Distribution):
    """With libraries it is no package for every machine."""

    def has_ext_modules(self):
        """Whether there are libraries."""
        return bool(MACHINE)


class WheelOfMachine(bdist_wheel):
    """Named after the machine and the oldest Linux its libraries run on, and no Python in particular."""

    def get_tag(self):
        """Python, its interface, and the platform."""
        if not MACHINE:
            return super().get_tag()
        built = self.get_finalized_command("build_py").build_lib
        return "py3", "none", f"manylinux_2_{oldest_glibc(libraries(Path(built)))}_{MACHINE}"


def libraries(package):
    """The folder of the compiled libraries in a tree of the package."""
    return package / "qdiff_fx" / "kernels" / "lib"


def oldest_glibc(folder):
    """The minor version of the C library that all need."""
    content = b"".join(path.read_bytes() for path in folder.glob("*.so"))
    needed = [17, *(int(minor) for minor in re.findall(rb"GLIBC_2\.(\d+)\0", content))]
    cxx = max((int(minor) for minor in re.findall(rb"GLIBCXX_3\.4\.(\d+)\0", content)), default=0)
    needed += [next(glibc for newest, glibc in GLIBC_OF_GLIBCXX if cxx <= newest)]
    return max(needed)


setup(distclass=OfMachine, cmdclass={"build_py": BuildWithKernels, "bdist_wheel": WheelOfMachine})
