"""What stands around the network that denoises: autoencoders, adapters. None has a timestep."""

from __future__ import annotations

import torch
from diffusers import AsymmetricAutoencoderKL, AutoencoderKL, AutoencoderTiny, T2IAdapter, VQModel

from benchmarks.coverage.network import Built, network

BATCH, SIZE = 2, 16


def images(channels: int = 3) -> torch.Tensor:
    return torch.randn(BATCH, channels, SIZE, SIZE)


@network("autoencoders", "KL (encoder and decoder)", timestep="")
def autoencoder_kl() -> Built:
    model = AutoencoderKL(
        block_out_channels=(16, 32),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=8,
    )
    return model, {"sample": images()}


@network("autoencoders", "KL for inpainting (asymmetric)", timestep="")
def autoencoder_asymmetric() -> Built:
    model = AsymmetricAutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        down_block_out_channels=(16, 32),
        up_block_types=("UpDecoderBlock2D",) * 2,
        up_block_out_channels=(16, 32),
        latent_channels=4,
        norm_num_groups=8,
    )
    return model, {"sample": images()}


@network("autoencoders", "tiny (TAESD)", timestep="")
def autoencoder_tiny() -> Built:
    model = AutoencoderTiny(
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
    )
    return model, {"sample": images()}


@network("autoencoders", "VQ-GAN", timestep="")
def vq_model() -> Built:
    model = VQModel(
        block_out_channels=(16, 32),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=3,
        num_vq_embeddings=16,
        norm_num_groups=8,
    )
    return model, {"sample": images()}


@network("T2I-Adapter", "full adapter", timestep="")
def t2i_adapter() -> Built:
    model = T2IAdapter(channels=[8, 16, 16, 16], num_res_blocks=1, downscale_factor=2)
    return model, {"x": images()}
