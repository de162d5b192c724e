"""Saved networks on the Hugging Face Hub: fetched into its cache, and read there as any folder is.

Only the files of a saved network are asked for, by their names; what else a repository holds stays where it is. What
was fetched once is found again without a network, by the same revision.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from qdiff_fx.errors import ArtifactError, ConfigError

HUB_ID = re.compile(r"[\w][\w.-]*/[\w][\w.-]*")


def located(
    name: str | os.PathLike[str],
    files: Sequence[str],
    *,
    subfolder: str = "",
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
) -> Path:
    """The folder of that name: a local one, or else that of a repository "owner/name", fetched.

    Args:
        name: a path is never taken for a repository.
        files: what is needed of a repository, relative to the folder.
        subfolder: of the folder or repository.
        revision: a branch, tag or commit of the repository; a commit is the same files for ever.
        cache_dir: where fetched files are kept; the hub's own cache by default.
        token: of an account that may read it; by default the one that is logged in.
        local_files_only: take what was fetched before.
    Raises:
        ArtifactError: it cannot be fetched.
        ConfigError: a revision of a local folder.
    """
    if not (isinstance(name, str) and HUB_ID.fullmatch(name)) or Path(name).exists():
        if revision is not None:
            raise ConfigError(
                f"a folder has no revision {revision!r}", where=str(name), fix="Leave it out, or name a repository"
            )
        return Path(name) / subfolder
    from huggingface_hub import snapshot_download  # a quarter of a second

    wanted = [f"{subfolder}/{file}" if subfolder else file for file in files]
    try:
        found = snapshot_download(
            name,
            revision=revision,
            cache_dir=None if cache_dir is None else Path(cache_dir),
            token=token,
            local_files_only=local_files_only,
            allow_patterns=wanted,
        )
    except Exception as error:
        cause = f"{type(error).__name__}: {error}".strip().splitlines()[0]
        raise ArtifactError(
            f"there is no such folder, and the hub did not give it ({cause})",
            where=name if revision is None else f"{name}@{revision}",
            fix="Check the name, the revision, and whether `hf auth login` is needed",
        ) from error
    if not any(Path(found, file).exists() for file in wanted):
        place = f"in {subfolder!r}" if subfolder else "at its root"
        raise ArtifactError(
            f"the repository has no saved network {place}",
            where=name,
            fix="Say which subfolder has one",
        )
    return Path(found) / subfolder
