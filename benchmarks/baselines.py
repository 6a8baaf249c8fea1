"""The selective scan as others have written it, all on the same numbers.

A baseline takes the arguments of `cmimtl_kernels.selective_scan`, brings them into its own layout
outside the timing, and gives a call without arguments. Before a baseline gets a row, its result is
compared with that of our kernel, and our kernel's with the reference.
"""

import functools
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import measure, peers
from cmimtl_kernels import reference
from cmimtl_kernels.testing import relative_l2

# Workloads of the scan: batch, length, dim.
TEXT = (16, 64, 1536)  # a block of batch 16, 32 pairs of tokens, interleaved
PATCHES = (4, 1154, 1536)  # the tokens of a ViT-B/16 at 384 pixels, interleaved
LONG = (1, 16384, 1536)
LARGE = (TEXT, PATCHES, LONG)
# Two small calls, where the fixed cost of a call counts; they are timed many in a row.
SMALL = ((1, 64, 1536), (2, 33, 96))

# The largest relative L2 error between two right results in float32, which add up 16384 steps in
# different orders. A missing term shows as more than a hundredth.
AGREE = 1e-3

# A baseline that would hold more bytes of states is not run: a laptop has no more to spare.
MOST_BYTES = 6e9


@dataclass(frozen=True)
class Baseline:
    """A way to run the scan.

    Attributes:
        name: its name in rows.
        scan: (u, delta, A, B, C, D, z, delta_bias) -> out; None where `peer` runs it.
        channels_last: whether `scan` takes this library's layout, (batch, length, dim), and not
            mamba's, (batch, dim, length).
        backward: whether it has a backward pass.
        missing: gives the reason why it cannot run here, or None.
        before: called before each workload.
        states_held: how many tensors of all states of all steps it holds at once, in its forward
            pass and with its backward pass.
        quadratic: whether the time of its backward pass is quadratic in length. It is where steps
            are indexed: the gradient of `x[:, t]` is as large as x.
        peer: the worker that runs it in another interpreter, or None.
    """

    name: str
    scan: Callable[..., Tensor] | None = None
    channels_last: bool = False
    backward: bool = True
    missing: Callable[[], str | None] = lambda: None
    before: Callable[[], None] = lambda: None
    states_held: tuple[int, int] = (0, 0)
    quadratic: bool = False
    peer: str | None = None

    def why_not(self, workload: tuple[int, int, int], dstate: int, backward: bool) -> str | None:
        """Why this workload (batch, length, dim) is not run, or None."""
        if reason := self.missing():
            return reason
        if backward and not self.backward:
            return "has no backward pass"
        batch, length, dim = workload
        held = 4 * batch * length * dim * dstate * self.states_held[backward]
        if held > MOST_BYTES:
            return f"would hold {held / 1e9:.0f} GB of states"
        return None

    def prepare(self, inputs: dict[str, Tensor], backward: bool) -> Callable[[], object]:
        """The call to time: forward without gradients, or forward and the gradient of every
        input."""
        self.before()
        if self.peer:
            return peers.start(self.peer).prepare(inputs)
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

    def results(self, of_call) -> tuple[Tensor, ...]:
        """What a prepared call has returned, in this library's layout: out, or the gradients."""
        tensors = of_call if isinstance(of_call, tuple) else (of_call,)
        if self.channels_last:
            return tensors
        return tuple(x.transpose(1, 2) if x.dim() == 3 else x for x in tensors)


def error(actual: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> float:
    """The worst relative L2 error of a baseline's results."""
    return max(relative_l2(a, b) for a, b in zip(actual, expected, strict=True))


def agreement(ours: str, candidates: dict[str, Baseline]) -> Callable:
    """The `first` of `measure.interleave` that compares each candidate's result with ours."""
    expected: list[Tensor] = []

    def first(name: str, call: Callable[[], object]) -> None:
        results = candidates[name].results(call())
        if name == ours:
            expected.extend(results)
        elif (worst := error(results, expected)) > AGREE:
            raise measure.Refused(f"refused: its result is off by {worst:.1e}")

    return first


def _reference(u, delta, A, B, C, D, z, delta_bias):
    return reference.selective_scan(u, delta, A, B, C, D, z, delta_bias, delta_softplus=True)


def mamba_reference(u, delta, A, B, C, D, z, delta_bias):
    """The scan as mamba_ssm's reference in plain PyTorch has it: the discretised A and B of all
    steps lie in memory, and each step indexes them.

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
    out = torch.stack(ys, 2) + u * D[:, None]
    return out if z is None else out * F.silu(z)


def _transformers(**options):
    def scan(u, delta, A, B, C, D, z, delta_bias):
        from transformers.models.mamba.modeling_mamba import mamba_selective_scan

        return mamba_selective_scan(
            u, delta, A, B, C, D, z, delta_bias=delta_bias, delta_softplus=True, **options
        )

    return scan


# How many steps the compiled baseline unrolls. More compile for minutes and run no faster.
UNROLL = 16


def _unrolled_chunk(state, u, delta, A, B, C, D, z, delta_bias):
    """A loop over these steps, which the compiler fuses into one loop over (batch, dim)."""
    ys = []
    delta = F.softplus(delta + delta_bias)
    for u_t, delta_t, B_t, C_t in zip(
        u.unbind(1), delta.unbind(1), B.unbind(1), C.unbind(1), strict=True
    ):
        decay = torch.exp(delta_t[..., None] * A)
        state = decay * state + (delta_t * u_t)[..., None] * B_t[:, None]
        ys.append((state * C_t[:, None]).sum(-1))
    return state, (torch.stack(ys, 1) + D * u) * F.silu(z)


@functools.cache
def _compiled_chunk() -> Callable[..., tuple[Tensor, Tensor]]:
    """The compiled loop. It is made at its first call: torch.compile takes seconds to import, and
    processes that measure something else import this file too.

    With `fullgraph` the compiler raises where it would quietly go back to eager calls, as it does
    past a few shapes.
    """
    return torch.compile(_unrolled_chunk, dynamic=False, fullgraph=True)


def _compiled(unroll: int) -> Callable[..., Tensor]:
    def scan(u, delta, A, B, C, D, z, delta_bias):
        chunk = _compiled_chunk()
        state = u.new_zeros(u.shape[0], u.shape[2], A.shape[1])
        outs = []
        chunks = zip(*(x.split(unroll, 1) for x in (u, delta, B, C, z)), strict=True)
        for u_c, delta_c, B_c, C_c, z_c in chunks:
            state, out = chunk(state, u_c, delta_c, A, B_c, C_c, D, z_c, delta_bias)
            outs.append(out)
        return torch.cat(outs, 1)

    return scan


def compiled(unroll: int = UNROLL) -> Baseline:
    """The baseline that a user writes today. It takes the longer to compile the more steps are
    unrolled and the more shapes there are; a length that `unroll` divides has one shape."""
    name = f"torch.compile of a {unroll}-step loop"
    # Without the reset each call would check the shapes of all earlier workloads first.
    return Baseline(name, _compiled(unroll), channels_last=True, before=torch.compiler.reset)


def _mamba_ssm(u, delta, A, B, C, D, z, delta_bias):
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    return selective_scan_fn(u, delta, A, B, C, D, z, delta_bias, delta_softplus=True)


def _needs(module: str, cuda: bool = False) -> Callable[[], str | None]:
    def missing() -> str | None:
        if importlib.util.find_spec(module) is None:
            return f"{module} is not installed"
        return "no CUDA device" if cuda and not torch.cuda.is_available() else None

    return missing


def _peer_needs(module: str) -> Callable[[], str | None]:
    def missing() -> str | None:
        if measure.DEVICE != "cpu":
            return "runs on the CPU alone"
        return peers.missing(module)

    return missing


BASELINES = (
    compiled(),
    Baseline("this library's reference", _reference, channels_last=True, states_held=(0, 4)),
    Baseline("mamba's reference", mamba_reference, states_held=(2, 5), quadratic=True),
    Baseline(
        "transformers' slow path",
        _transformers(),
        missing=_needs("transformers"),
        states_held=(2, 5),
        quadratic=True,
    ),
    Baseline(
        "mambapy",
        _transformers(use_mambapy=True),
        missing=_needs("mambapy"),
        states_held=(3, 8),
    ),
    Baseline(
        "Intel's extension",
        backward=False,
        channels_last=True,
        missing=_peer_needs("intel_extension_for_pytorch"),
        peer="intel",
    ),
    Baseline("ggml", backward=False, channels_last=True, missing=_peer_needs("ggml"), peer="ggml"),
    Baseline("mamba_ssm", _mamba_ssm, missing=_needs("mamba_ssm", cuda=True)),
)
