"""Quantized networks and pipelines, pushed to the Hugging Face Hub: `load_qdiff`, `from_pretrained` bring them back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from qdiff_fx.atomic import write_text
from qdiff_fx.errors import ArtifactError, ConfigError
from qdiff_fx.integrations.model_card import model_card
from qdiff_fx.networks import QuantizedUNet
from qdiff_fx.sources.parts import all_quantized
from qdiff_fx.storage.artifact import artifact_bytes, save_artifact
from qdiff_fx.storage.component import network_in, save_component
from qdiff_fx.storage.hub import HUB_ID

CARD = "README.md"


def push_to_hub(
    quantized: Any,
    repository: str,
    *,
    base_model: str = "",
    license: str = "",
    figures: Mapping[str, object] | None = None,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    commit_message: str = "Upload a network quantized with qdiff_fx",
) -> str:
    """Save a quantized network or a pipeline that has one, with a model card, and upload it.

    Args:
        quantized: a network, which `load_qdiff("owner/name")` loads; or a diffusers pipeline, which
            `DiffusionPipeline.from_pretrained("owner/name")` does.
        repository: "owner/name"; made where it does not exist.
        base_model, license, figures: for the card, see `model_card`.
        private: whether a new repository is.
        token: of an account that may write it; by default the one that is logged in.
        revision: a branch other than main.
        create_pr: propose it in place of changing the branch.
    Returns:
        The address of the commit.
    Raises:
        ConfigError: there is no quantized network in it, or the name is none.
        ArtifactError: it cannot be saved, or the hub did not take it.
    """
    if not HUB_ID.fullmatch(repository):
        raise ConfigError(f"{repository!r} is not the name of a repository", where="repository", fix="Write owner/name")
    component, network, others = _network_of(quantized)
    with TemporaryDirectory() as above:
        folder = Path(above) / "repository"
        artifact = network.to_artifact()
        if not HUB_ID.fullmatch(artifact.source) or Path(artifact.source).exists():
            artifact = replace(artifact, source=base_model)  # where it lay on this machine is nobody's business
        if component:
            quantized.save_pretrained(folder)
        if not component:
            save_artifact(artifact, folder)
        elif "." not in component:  # what is inside an autoencoder does not record where it comes from
            save_component(artifact, folder / component)
        card = model_card(
            network,
            repository,
            component=component,
            others=others,
            size=artifact_bytes(_saved_in(folder, component)),
            base_model=base_model,
            license=license,
            figures=figures,
        )
        write_text(folder / CARD, card)
        return _upload(folder, repository, private, token, revision, create_pr, commit_message)


def _saved_in(folder: Path, component: str) -> Path:
    outer, _, inside = component.partition(".")
    return folder / outer / f"{inside}.qdiff" if inside else network_in(folder / outer)


def _network_of(quantized: Any) -> tuple[str, QuantizedUNet, list[str]]:
    """The network that denoises, or the first there is; what its pipeline calls it; and the other quantized ones."""
    if isinstance(quantized, QuantizedUNet):
        return "", quantized, []
    found = all_quantized(quantized)
    if not found:
        raise ConfigError(
            f"there is no quantized network in a {type(quantized).__name__}",
            where="push_to_hub",
            fix="Quantize it first: qdiff_fx.quantize(pipe)",
        )
    first, *others = found
    return first, found[first], others


def _upload(
    folder: Path,
    repository: str,
    private: bool | None,
    token: str | bool | None,
    revision: str | None,
    create_pr: bool,
    message: str,
) -> str:
    from huggingface_hub import HfApi  # a quarter of a second

    api = HfApi(token=token, library_name="qdiff_fx")
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        done = api.upload_folder(
            repo_id=repository, folder_path=folder, revision=revision, create_pr=create_pr, commit_message=message
        )
    except Exception as error:
        cause = f"{type(error).__name__}: {error}".strip().splitlines()[0]
        raise ArtifactError(
            f"the hub did not take it ({cause})", where=repository, fix="Log in with `hf auth login`, or pass a token"
        ) from error
    return str(done.commit_url)
