"""Networks and pipelines on a hub: fetched, pinned, found again without a network, pushed. Its HTTP side is faked."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DDPMPipeline, DiffusionPipeline, UNet2DModel
from fake_hub import FakeHub, serving, talk_to

from qdiff_fx import load_qdiff, push_to_hub, quantize, save_qdiff
from qdiff_fx.errors import ArtifactError, ConfigError
from qdiff_fx.integrations.model_card import model_card
from qdiff_fx.networks.autoencoder import QuantizedAutoencoderKL
from qdiff_fx.sources import resolve

INPUTS = {
    "sample": torch.linspace(-1, 1, 1024).reshape(1, 4, 16, 16),
    "timestep": 3,
    "encoder_hidden_states": torch.ones(1, 24, 32),
}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with serving(FakeHub()) as fake:
        talk_to(fake, monkeypatch, tmp_path / "cache")
        yield fake


@pytest.fixture(scope="module")
def files(quantized_pipeline: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Of the quantized UNet, as `save_qdiff` writes it."""
    return contents(save_qdiff(quantized_pipeline.unet, tmp_path_factory.mktemp("unet") / "saved"))


def contents(folder: Path) -> dict[str, bytes]:
    return {each.relative_to(folder).as_posix(): each.read_bytes() for each in folder.rglob("*") if each.is_file()}


def answer(network: Any) -> torch.Tensor:
    result: torch.Tensor = network(**INPUTS).sample
    return result


def test_it_is_fetched_and_nothing_else_of_the_repository(
    hub: FakeHub, files: dict[str, bytes], quantized_pipeline: Any
) -> None:
    hub.commit("owner/unet", {**files, "train.py": b"import os", "model.bin": b"pickle"})
    assert torch.equal(answer(load_qdiff("owner/unet")), answer(quantized_pipeline.unet))
    assert not any(each.endswith((".py", ".bin")) for each in hub.requests)


def test_a_commit_is_the_same_network_for_ever(hub: FakeHub, files: dict[str, bytes], quantized_pipeline: Any) -> None:
    first = hub.commit("owner/unet", files)
    hub.commit("owner/unet", {"qdiff.json": b"another"})
    assert torch.equal(answer(load_qdiff("owner/unet", revision=first)), answer(quantized_pipeline.unet))
    with pytest.raises(ArtifactError, match="qdiff.json"):
        load_qdiff("owner/unet")


@pytest.mark.parametrize("how", ["down", "local"])
def test_what_was_fetched_loads_without_a_network(hub: FakeHub, files: dict[str, bytes], how: str) -> None:
    hub.commit("owner/unet", files)
    expected = answer(load_qdiff("owner/unet"))
    hub.down, asked = True, len(hub.requests)
    found = load_qdiff("owner/unet", local_files_only=how == "local")
    assert torch.equal(answer(found), expected)
    assert how == "down" or len(hub.requests) == asked


def test_a_cache_laid_out_like_the_hubs_is_enough(
    files: dict[str, bytes], tmp_path: Path, quantized_pipeline: Any
) -> None:
    """As another program left it: blobs, and a snapshot of links to them."""
    repository = tmp_path / "models--owner--unet"
    snapshot, commit = repository / "snapshots" / ("0" * 40), "0" * 40
    for folder in (snapshot, repository / "refs", repository / "blobs"):
        folder.mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    for number, (name, content) in enumerate(files.items()):
        (repository / "blobs" / str(number)).write_bytes(content)
        (snapshot / name).symlink_to(Path("../../blobs") / str(number))
    for revision in (None, commit):
        found = load_qdiff("owner/unet", revision=revision, cache_dir=tmp_path, local_files_only=True)
        assert torch.equal(answer(found.with_backend("native")), answer(quantized_pipeline.unet))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("owner/none", {}, "owner/none: there is no such folder, and the hub did not give it .*RepositoryNotFound"),
        ("owner/unet", {"revision": "v9"}, "owner/unet@v9: .*RevisionNotFound"),
        ("owner/unet", {"local_files_only": True}, "LocalEntryNotFound"),
        ("owner/unet", {"subfolder": "unet"}, "owner/unet: the repository has no saved network in 'unet'"),
    ],
)
def test_what_is_not_there_is_said(
    hub: FakeHub, files: dict[str, bytes], name: str, options: dict[str, Any], message: str
) -> None:
    hub.commit("owner/unet", files)
    with pytest.raises(ArtifactError, match=message):
        load_qdiff(name, **options)


def test_a_folder_is_never_a_repository(
    hub: FakeHub, files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner" / "unet").mkdir(parents=True)
    hub.commit("owner/unet", files)
    for name in ("owner/unet", Path("owner/other"), "./owner/other"):
        with pytest.raises(ArtifactError, match="not a saved network|does not exist"):
            load_qdiff(name)
    assert not hub.requests
    with pytest.raises(ConfigError, match="a folder has no revision 'main'"):
        load_qdiff("owner/unet", revision="main")


def test_a_network_is_pushed_with_a_card(hub: FakeHub, files: dict[str, bytes], quantized_pipeline: Any) -> None:
    network = quantized_pipeline.unet
    address = push_to_hub(network, "owner/new", token="hf_test", base_model="someone/sd", figures={"ε SQNR": "33.9 dB"})
    assert address.startswith(f"{hub.endpoint}/owner/new/commit/")
    pushed = hub.files("owner/new")
    assert {name: pushed[name] for name in ("graph.json", "weights.safetensors")}.items() <= files.items()
    assert set(pushed) == {*files, "README.md"}
    assert json.loads(pushed["qdiff.json"])["source"] == "someone/sd"
    card = pushed["README.md"].decode()
    layers = network.explain().counts[0]
    for part in (
        f"{layers} of {layers} layers",
        'base_model: "someone/sd"',
        "w4a8",
        "| ε SQNR | 33.9 dB |",
        'load_qdiff("owner/new")',
        "4 bits in",
    ):
        assert part in card
    assert torch.equal(answer(load_qdiff("owner/new")), answer(network))


def test_a_pipeline_is_pushed_and_loaded_by_diffusers(hub: FakeHub, quantized_pipeline: Any, tmp_path: Path) -> None:
    push_to_hub(quantized_pipeline, "owner/pipe", token="hf_test")
    card = hub.files("owner/pipe")["README.md"].decode()
    assert 'DiffusionPipeline.from_pretrained("owner/pipe")' in card
    assert "library_name: diffusers" in card
    pipe = DiffusionPipeline.from_pretrained("owner/pipe", cache_dir=tmp_path / "fresh")
    assert torch.equal(answer(pipe.unet), answer(quantized_pipeline.unet))
    hub.down = True
    again = DiffusionPipeline.from_pretrained("owner/pipe", cache_dir=tmp_path / "fresh")
    assert torch.equal(answer(again.unet), answer(quantized_pipeline.unet))
    alone = load_qdiff("owner/pipe", subfolder="unet", cache_dir=tmp_path / "fresh", local_files_only=True)
    assert torch.equal(answer(alone), answer(quantized_pipeline.unet))


@pytest.mark.slow
def test_a_pipeline_is_pushed_with_all_its_parts(hub: FakeHub, quantized_pipeline: Any, tmp_path: Path) -> None:
    pipe = copy.copy(quantized_pipeline)
    quantize(pipe, data=["a fish"], budget=None, steps=2, progress=False, parts="vae,text")
    push_to_hub(pipe, "owner/whole", token="hf_test")
    card = hub.files("owner/whole")["README.md"].decode()
    assert "A diffusion pipeline whose `unet` is quantized to W4A8" in card
    assert "So are, with bits of their own, `text_encoder`, `vae.decoder`." in card
    loaded = DiffusionPipeline.from_pretrained("owner/whole", cache_dir=tmp_path / "fresh")
    latents = torch.ones(1, 4, 8, 8)
    assert torch.equal(loaded.vae.decode(latents).sample, pipe.vae.decode(latents).sample)
    ids = torch.ones(1, 24, dtype=torch.long)
    assert torch.equal(loaded.text_encoder(ids)[0], pipe.text_encoder(ids)[0])
    vae = QuantizedAutoencoderKL.from_pretrained("owner/whole", subfolder="vae", cache_dir=tmp_path / "vae")
    assert torch.equal(vae.decode(latents).sample, pipe.vae.decode(latents).sample)


def test_a_repository_with_float16_alone_is_a_source(hub: FakeHub, tmp_path: Path) -> None:
    """`qdiff quantize owner/name`; and again without a network."""
    blocks = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",), "block_out_channels": (8,)}
    unet = UNet2DModel(sample_size=4, norm_num_groups=4, **blocks)
    DDPMPipeline(unet.half(), DDIMScheduler()).save_pretrained(tmp_path / "half", variant="fp16")
    hub.commit("owner/half", contents(tmp_path / "half"))
    for hub.down in (False, True):
        source = resolve("owner/half")
        assert source.identifier == "owner/half"
        assert {each.dtype for each in source.unet.parameters()} == {torch.float32}


def test_where_it_lay_on_this_machine_is_not_pushed(hub: FakeHub, quantized_pipeline: Any, tmp_path: Path) -> None:
    network = load_qdiff(save_qdiff(quantized_pipeline.unet, tmp_path / "saved"))
    network.source = str(tmp_path / "somebody's")
    pipe = copy.copy(quantized_pipeline)
    pipe.unet = network
    for pushed, prefix in ((network, ""), (pipe, "unet/network.qdiff/")):
        push_to_hub(pushed, "owner/new", token="hf_test")
        assert json.loads(hub.files("owner/new")[f"{prefix}qdiff.json"])["source"] == ""


def test_the_pipelines_own_push_to_hub_does_it_too(hub: FakeHub, quantized_pipeline: Any, tmp_path: Path) -> None:
    quantized_pipeline.push_to_hub("owner/own", token="hf_test")
    pipe = DiffusionPipeline.from_pretrained("owner/own", cache_dir=tmp_path / "fresh")
    assert torch.equal(answer(pipe.unet), answer(quantized_pipeline.unet))


def test_what_cannot_be_pushed_is_said(hub: FakeHub, quantized_pipeline: Any, float_pipeline: Any) -> None:
    with pytest.raises(ConfigError, match="no quantized network in a StableDiffusionPipeline"):
        push_to_hub(float_pipeline, "owner/new")
    with pytest.raises(ConfigError, match="'new' is not the name of a repository"):
        push_to_hub(quantized_pipeline, "new")
    hub.down = True
    with pytest.raises(ArtifactError, match="owner/new: the hub did not take it"):
        push_to_hub(quantized_pipeline.unet, "owner/new", token="hf_test")


def test_whatever_a_card_is_told_stays_text(quantized_pipeline: Any) -> None:
    card = model_card(
        quantized_pipeline.unet, "owner/new", base_model='a"\nb: c', license="mit", figures={"a|b": "1\n| 2"}
    )
    front = card.split("---")[1]
    assert json.loads(front.split("base_model: ")[1].splitlines()[0]) == 'a"\nb: c'
    assert "| a\\|b | 1 \\| 2 |" in card
