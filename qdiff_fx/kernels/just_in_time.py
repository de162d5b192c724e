"""Libraries made on first use, once per user and machine, and kept where that can be."""

from __future__ import annotations

import os
import tempfile
import warnings
from pathlib import Path

from qdiff_fx.errors import KernelError
from qdiff_fx.kernels.build import CompilerError, Recipe, build, compiler_version, find_compiler, key
from qdiff_fx.kernels.cache import BUILD_PREFIX, Cache, is_intact, open_cache
from qdiff_fx.kernels.libraries import Loaded, load


def cached_or_built(recipe: Recipe) -> Loaded:
    """The library: the cached one, or a new one.

    Raises:
        KernelError: there is none and none can be made.
    """
    if os.name != "posix":
        raise KernelError("the kernels are built where users and their files are those of POSIX only")
    compiler, name = find_compiler(), f"qdiff_{recipe.name}-{key(recipe)}"
    name = f"{name}-{compiler_version(compiler)}.so" if compiler else f"{name}-*.so"
    try:
        cache = open_cache()
    except KernelError as error:
        return _build_for_this_process(compiler, recipe, str(error))
    for found in cache.libraries(name):
        try:
            return load(found, recipe)
        except KernelError:
            cache.forget(found)
    if not compiler:
        raise _no_compiler()
    if not cache.writable:
        return _build_for_this_process(
            compiler, recipe, f"{cache.folder} cannot be written and has no library that fits"
        )
    return _build_into(cache, compiler, recipe, name)


def _build_into(cache: Cache, compiler: str, recipe: Recipe, name: str) -> Loaded:
    with cache.lock(name):
        path = cache.folder / name
        if not is_intact(path):  # nobody was faster
            try:
                with tempfile.TemporaryDirectory(dir=cache.folder, prefix=BUILD_PREFIX) as folder:
                    path = cache.keep(build(compiler, recipe, Path(folder)), name)
            except CompilerError:
                raise
            except (KernelError, OSError) as error:
                return _build_for_this_process(compiler, recipe, str(error))
    try:
        return load(path, recipe)
    except KernelError as error:
        cache.forget(path)
        raise KernelError(f"the built library does not load: {error}", where=str(path)) from error


def _build_for_this_process(compiler: str, recipe: Recipe, reason: str) -> Loaded:
    """A library in a temporary folder of ours, which is gone once it is loaded."""
    if not compiler:
        raise _no_compiler()
    warnings.warn(
        f"the int8 kernels are compiled for this process alone, which takes some seconds each time: {reason}",
        RuntimeWarning,
        stacklevel=2,
    )
    try:
        with tempfile.TemporaryDirectory(prefix="qdiff-kernels-") as folder:
            return load(build(compiler, recipe, Path(folder)), recipe)
    except OSError as error:
        raise KernelError(f"there is no place to build the kernels: {error}", where="the temporary folder") from error


def _no_compiler() -> KernelError:
    return KernelError("no C++ compiler", fix="Install one of g++, clang++, c++, or set CXX")
