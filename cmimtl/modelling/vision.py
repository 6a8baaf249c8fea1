"""The image encoder: a Vision Transformer of timm."""

import inspect
from typing import Any, cast

import torch
from torch import Tensor, nn

from cmimtl.modelling._timm import timm
from cmimtl.modelling.config import CMIMTLConfig

# The arguments of timm.create_model that are not its model's.
_NOT_OF_A_TRANSFORMER = set(inspect.signature(timm.create_model).parameters) - {"kwargs"}


class VisionEncoder(nn.Module):
    """Turn an image into tokens.

    Shapes: pixel_values (batch, 3, image_size, image_size) -> (batch, tokens, hidden_size). The
        last (image_size / patch_size)**2 tokens are the patches, row by row.
    """

    def __init__(self, config: CMIMTLConfig):
        super().__init__()
        options = config.vision_options or {}
        # timm reads configurations and weights from the hub or from files where it is told to, by
        # a name with a scheme or by one of its own arguments.
        if not timm.is_model(config.vision_model) or ":" in config.vision_model:
            raise ValueError(
                "CMIMTLConfig: vision_model must be the name of a Vision Transformer of timm, got"
                f" {config.vision_model!r}."
            )
        if taken := _NOT_OF_A_TRANSFORMER & set(options):
            raise ValueError(
                "CMIMTLConfig: vision_options must be those of a Vision Transformer, got"
                f" {', '.join(sorted(taken))}."
            )
        self.vit: Any = timm.create_model(
            config.vision_model,
            pretrained=False,
            num_classes=0,
            img_size=config.image_size,
            patch_size=config.patch_size,
            **options,
        )
        self.hidden_size = cast("int", self.vit.num_features)
        self.image_size = config.image_size
        self.gradient_checkpointing = False  # transformers sets it in every module that has it

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
        self.vit.set_grad_checkpointing(self.gradient_checkpointing and self.training)
        return self.vit.forward_features(pixel_values)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
