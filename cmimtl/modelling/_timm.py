"""Import timm, which imports torchvision, and tell what to do where that does not fit torch."""

from importlib import metadata

import torch

try:
    import timm
except RuntimeError as error:  # torchvision: "operator torchvision::nms does not exist"
    raise ImportError(
        "cmimtl: torchvision must be of the release and the build of torch, got torchvision"
        f" {metadata.version('torchvision')} beside torch {torch.__version__};"
        " `python -m cmimtl_kernels` tells how to install the one that fits"
    ) from error

__all__ = ["timm"]
