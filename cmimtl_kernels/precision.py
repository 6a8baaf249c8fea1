"""`KeepsFloat32`, for modules with parameters that half a precision is too little for."""

import torch
from torch import Tensor, nn


class KeepsFloat32(nn.Module):
    """A module whose own parameters stay float32 where `half()` and its like cast the module.

    Those of its children, and what is cast to float64, are cast as always.
    """

    def _apply(self, fn, recurse=True):
        def keep(x: Tensor) -> Tensor:
            moved = fn(x)
            narrow = moved.dtype in (torch.float16, torch.bfloat16) and x.dtype == torch.float32
            return x.to(moved.device) if narrow else moved

        if recurse:
            for child in self.children():
                child._apply(fn)
        return super()._apply(keep, recurse=False)
