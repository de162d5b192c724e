"""The networks of the bundled digits model: UNet layout, class embedding, and judge classifier."""

from __future__ import annotations

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from torch import nn

NULL_LABEL = 10
IMAGE_SIZE = 32
EMBEDDING_TOKENS = 4
EMBEDDING_DIM = 64


def build_digits_unet() -> UNet2DConditionModel:
    """A freshly initialised UNet: (B, 1, 32, 32), (B,), (B, 4, 64) -> (B, 1, 32, 32).

    Three resolutions (32, 16, 8), cross-attention on the lower two, and concatenated shortcuts on the way up.
    """
    unet: UNet2DConditionModel = UNet2DConditionModel(
        sample_size=IMAGE_SIZE,
        in_channels=1,
        out_channels=1,
        block_out_channels=(32, 48, 64),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        mid_block_type="UNetMidBlock2DCrossAttn",
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        cross_attention_dim=EMBEDDING_DIM,
        attention_head_dim=2,
        norm_num_groups=8,
    )
    return unet


def build_digits_scheduler() -> DDIMScheduler:
    """The noise schedule the UNet was trained with: 1000 squared-cosine steps, epsilon prediction."""
    scheduler: DDIMScheduler = DDIMScheduler(
        num_train_timesteps=1000,
        beta_schedule="squaredcos_cap_v2",
        prediction_type="epsilon",
        clip_sample=True,
        set_alpha_to_one=True,
    )
    return scheduler


class DigitEmbedding(ModelMixin, ConfigMixin):
    """Turns digit labels into cross-attention tokens; label 10 is the null label used for guidance."""

    config_name = "config.json"  # type: ignore[assignment]  # diffusers declares None

    @register_to_config  # type: ignore[untyped-decorator]  # diffusers' own
    def __init__(
        self, num_labels: int = NULL_LABEL + 1, tokens: int = EMBEDDING_TOKENS, dim: int = EMBEDDING_DIM
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # diffusers' own
        self.tokens = tokens
        self.dim = dim
        self.table = nn.Embedding(num_labels, tokens * dim)

    def forward(self, labels: torch.Tensor) -> torch.Tensor:
        """labels (B,) int64 -> encoder_hidden_states (B, tokens, dim)."""
        rows: torch.Tensor = self.table(labels)
        return rows.reshape(labels.shape[0], self.tokens, self.dim)


def _conv_block(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())


class DigitClassifier(nn.Module):
    """A small convolutional judge of generated digits, on 32x32 images in [-1, 1]."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            _conv_block(1, 16),
            nn.MaxPool2d(2),
            _conv_block(16, 32),
            nn.MaxPool2d(2),
            _conv_block(32, 64),
            nn.MaxPool2d(2),
            _conv_block(64, 64),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        self.head = nn.Linear(64, 10)

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """images (B, 1, 32, 32) -> features (B, 64), the input of the last layer."""
        features: torch.Tensor = self.body(images)
        return features

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """images (B, 1, 32, 32) -> logits (B, 10)."""
        logits: torch.Tensor = self.head(self.features(images))
        return logits
