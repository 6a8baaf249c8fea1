"""Calls of the sub-modules whose weights a block hands to the kernels: a convolution and the
projection of the step size.

The kernels fuse the one with its activation and the bias of the other with the scan, so a block
reads their weights and does not call them. That is right only while calling them would do nothing
else. LoRA, quantisation, parametrisations, pruning and sharding each replace such a module, its
class or its forward, or hook into its call; then it is called.
"""

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from cmimtl_kernels.ops import causal_conv1d
from cmimtl_kernels.resample import blank_padding

_KINDS = (nn.Linear, nn.Conv1d, nn.LayerNorm)


def is_plain(module: nn.Module) -> bool:
    """Whether a call of the module computes what PyTorch's class says, and does nothing else."""
    return (
        type(module) in _KINDS
        and "forward" not in module.__dict__  # accelerate puts a function of its own there
        and not (
            module._forward_pre_hooks
            or module._forward_hooks
            or module._backward_pre_hooks
            or module._backward_hooks
            or _has_any_global_hook()
        )
    )


def convolve(
    conv1d: nn.Conv1d, u: Tensor, lengths: Tensor | None, *, reverse: bool, backend: str
) -> Tensor:
    """silu(conv1d(u)), causal. (batch, length, dim) -> the same

    Args:
        conv1d: an `nn.Conv1d` with a group for each channel and padding of its width - 1, or what
            replaces it, which is called on (batch, dim, length).
        u, lengths, reverse, backend: as in `cmimtl_kernels.causal_conv1d`.
    """
    if is_plain(conv1d):
        return causal_conv1d(
            u,
            conv1d.weight[:, 0],
            conv1d.bias,
            activation="silu",
            lengths=lengths,
            reverse=reverse,
            backend=backend,
        )
    x = blank_padding(u, lengths).transpose(1, 2)  # (batch, dim, length)
    # Padded on both sides, it gives width - 1 steps too many, at the end.
    if reverse:
        x = conv1d(x.flip(2))[..., : u.shape[1]].flip(2)
    else:
        x = conv1d(x)[..., : u.shape[1]]
    return F.silu(blank_padding(x.transpose(1, 2), lengths))


def step_size(dt_proj: nn.Linear, r: Tensor) -> tuple[Tensor, Tensor | None]:
    """Project r, (batch, steps, dt_rank), to the step size before softplus.

    -> delta (batch, steps, dim), and the bias that the scan is left to add, if any
    """
    if is_plain(dt_proj):
        return F.linear(r, dt_proj.weight), dt_proj.bias
    return dt_proj(r), None
