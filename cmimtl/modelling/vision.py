"""The image encoder: a Vision Transformer of timm."""

from typing import Any, cast

import torch
from torch import Tensor, nn

from cmimtl.modelling._timm import timm
from cmimtl.modelling.config import CMIMTLConfig


class VisionEncoder(nn.Module):
    """Turn an image into tokens.

    Shapes: pixel_values (batch, 3, image_size, image_size) -> (batch, tokens, hidden_size). The
        last (image_size / patch_size)**2 tokens are the patches, row by row.
    """

    def __init__(self, config: CMIMTLConfig):
        super().__init__()
        self.vit: Any = timm.create_model(
            config.vision_model,
            pretrained=False,
            num_classes=0,
            img_size=config.image_size,
            patch_size=config.patch_size,
            **(config.vision_options or {}),
        )
        self.hidden_size = cast("int", self.vit.num_features)
        self.image_size = config.image_size

    def reset_parameters(self) -> None:
        """Initialise the weights as timm does."""
        self.vit.init_weights("")

    def forward(self, pixel_values: Tensor) -> Tensor:
        size = (3, self.image_size, self.image_size)
        if pixel_values.dim() != 4 or tuple(pixel_values.shape[1:]) != size:
            raise ValueError(
                f"CMIMTL: pixel_values must have shape (batch, {', '.join(map(str, size))}),"
                f" got {tuple(pixel_values.shape)}."
            )
        # Autocast casts pictures and weights itself.
        dtype = next(self.vit.parameters()).dtype
        if pixel_values.dtype != dtype and not torch.is_autocast_enabled(pixel_values.device.type):
            raise ValueError(
                f"CMIMTL: pixel_values must have the model's dtype ({_name(dtype)}), got"
                f" {_name(pixel_values.dtype)}; pass pixel_values.to(model.dtype)."
            )
        return self.vit.forward_features(pixel_values)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
