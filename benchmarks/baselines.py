"""The selective scan as others have it, each on the same numbers in the layout that it wants.

A baseline is made from the arguments of `cmimtl_kernels.selective_scan` (channels-last) and gives a
call without arguments; what it needs in another layout is prepared outside the timing.
"""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from cmimtl_kernels import reference


@dataclass(frozen=True)
class Baseline:
    """A way to run the scan.

    Attributes:
        name: as rows name it.
        scan: (u, delta, A, B, C, D, z, delta_bias) in mamba's layout, (batch, dim, length), -> out;
            channels-last where `channels_last`.
        channels_last: whether it takes this library's layout.
        backward: whether it has a backward pass.
        missing: why it cannot run here, or None.
        most_elements: the largest batch * length * dim * dstate, forward and with backward, that a
            benchmark can wait for (or that fits the memory of a laptop).
        longest_backward: the longest sequence for its backward pass, where that is quadratic.
    """

    name: str
    scan: Callable[..., Tensor]
    channels_last: bool = False
    backward: bool = True
    missing: Callable[[], str | None] = lambda: None
    most_elements: tuple[int, int] = (2**40, 2**40)
    longest_backward: int = 2**40

    def why_not(self, inputs: dict[str, Tensor], backward: bool) -> str | None:
        """Why this workload is not run, or None."""
        if reason := self.missing():
            return reason
        if backward and not self.backward:
            return "has no backward pass"
        batch, length, dim = inputs["u"].shape
        elements = batch * length * dim * inputs["A"].shape[1]
        if elements > self.most_elements[backward]:
            return "takes minutes, or more memory than a laptop has"
        if backward and length > self.longest_backward:
            return "backward pass quadratic in length"
        return None

    def prepare(self, inputs: dict[str, Tensor], backward: bool) -> Callable[[], object]:
        """The call to time: forward without gradients, or forward and the gradient of every
        input."""
        names = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")
        tensors = []
        for name in names:
            x = inputs[name].detach()
            if x.dim() == 3 and not self.channels_last:
                x = x.transpose(1, 2).contiguous()
            tensors.append(x.clone().requires_grad_(backward))
        cotangent = torch.ones_like(tensors[0])
        if not backward:
            return torch.no_grad()(lambda: self.scan(*tensors))
        return lambda: torch.autograd.grad(self.scan(*tensors), tensors, cotangent)


def _reference(u, delta, A, B, C, D, z, delta_bias):
    return reference.selective_scan(u, delta, A, B, C, D, z, delta_bias, delta_softplus=True)


def _mamba_reference(u, delta, A, B, C, D, z, delta_bias):
    """As the pure PyTorch reference of mamba_ssm works: the discretised A and B of all steps in
    memory, then one step at a time by indexing.

    Source: state-spaces/mamba, selective_scan_ref.
    """
    delta = F.softplus(delta + delta_bias[:, None])
    decay = torch.exp(torch.einsum("bdl,dn->bdln", delta, A))
    update = torch.einsum("bdl,bnl,bdl->bdln", delta, B, u)
    state = u.new_zeros(u.shape[0], u.shape[1], A.shape[1])
    ys = []
    for t in range(u.shape[2]):
        state = decay[:, :, t] * state + update[:, :, t]
        ys.append(torch.einsum("bdn,bn->bd", state, C[:, :, t]))
    return (torch.stack(ys, 2) + u * D[:, None]) * F.silu(z)


def _transformers(**options):
    def scan(u, delta, A, B, C, D, z, delta_bias):
        from transformers.models.mamba.modeling_mamba import mamba_selective_scan

        return mamba_selective_scan(
            u, delta, A, B, C, D, z, delta_bias=delta_bias, delta_softplus=True, **options
        )

    return scan


# Steps that the compiled baseline unrolls. Longer ones compile for minutes and run no faster.
UNROLL = 16


@torch.compile(dynamic=False)
def _unrolled_chunk(state, u, delta, A, B, C, D, z, delta_bias):
    """UNROLL steps (fewer at the end) that the compiler fuses into one loop over (batch, dim)."""
    ys = []
    delta = F.softplus(delta + delta_bias)
    for u_t, delta_t, B_t, C_t in zip(
        u.unbind(1), delta.unbind(1), B.unbind(1), C.unbind(1), strict=True
    ):
        decay = torch.exp(delta_t[..., None] * A)
        state = decay * state + (delta_t * u_t)[..., None] * B_t[:, None]
        ys.append((state * C_t[:, None]).sum(-1))
    return state, (torch.stack(ys, 1) + D * u) * F.silu(z)


def _compiled(u, delta, A, B, C, D, z, delta_bias):
    state = u.new_zeros(u.shape[0], u.shape[2], A.shape[1])
    outs = []
    chunks = zip(*(x.split(UNROLL, 1) for x in (u, delta, B, C, z)), strict=True)
    for u_c, delta_c, B_c, C_c, z_c in chunks:
        state, out = _unrolled_chunk(state, u_c, delta_c, A, B_c, C_c, D, z_c, delta_bias)
        outs.append(out)
    return torch.cat(outs, 1)


def _mamba_ssm(u, delta, A, B, C, D, z, delta_bias):
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    return selective_scan_fn(u, delta, A, B, C, D, z, delta_bias, delta_softplus=True)


def _needs(module: str, cuda: bool = False) -> Callable[[], str | None]:
    def missing() -> str | None:
        if importlib.util.find_spec(module) is None:
            return f"{module} is not installed"
        return "no CUDA device" if cuda and not torch.cuda.is_available() else None

    return missing


BASELINES = (
    Baseline("torch.compile of a 16-step loop", _compiled, channels_last=True),
    Baseline(
        "this library's reference",
        _reference,
        channels_last=True,
        most_elements=(2**27, 2**27),
    ),
    Baseline(
        "mamba's reference",
        _mamba_reference,
        most_elements=(2**27, 2**27),
        longest_backward=64,
    ),
    Baseline(
        "transformers",
        _transformers(),
        missing=_needs("transformers"),
        most_elements=(2**27, 2**27),
        longest_backward=64,
    ),
    Baseline(
        "mambapy",
        _transformers(use_mambapy=True),
        missing=_needs("mambapy"),
        most_elements=(2**27, 2**25),
    ),
    Baseline("mamba_ssm", _mamba_ssm, missing=_needs("mamba_ssm", cuda=True)),
)
