"""What the CUDA ops refuse when they are called themselves, not through the public functions."""

import pytest
import torch

from cmimtl_kernels import testing
from tests.cuda_on_cpu.conftest import NAMESPACE

pytestmark = pytest.mark.usefixtures("cuda_on_cpu")
OPTIONS = {"delta_softplus": False, "reverse": False, "checkpoint_every": 8}


def ops():
    return getattr(torch.ops, NAMESPACE)


def scan_arguments(**sizes) -> dict:
    inputs = testing.scan_inputs(**({"batch": 1, "length": 4, "dim": 2, "dstate": 4} | sizes))
    inputs["B"], inputs["C"] = inputs["B"][:, :, None], inputs["C"][:, :, None]  # one group
    return inputs | OPTIONS


def far_apart(shape: tuple[int, ...]) -> torch.Tensor:
    """A tensor of one step whose step stride does not fit 32 bits; its size of 1 is never moved by
    it."""
    return torch.zeros(shape).as_strided(shape, (0, 2**31, 1))


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"checkpoint_every": 12}, "checkpoint_every must be 0 or 8, got 12"),
        (
            {"u": far_apart((1, 1, 2))},
            r"u must have strides below 2\^31 along steps and the last axis, got 2147483648 and 1; "
            r"call contiguous\(\) on it",
        ),
    ],
    ids=["checkpoint_every", "stride"],
)
def test_scan_refuses(changed, message):
    arguments = scan_arguments() | changed
    length = arguments["u"].shape[1]
    for name in ("delta", "B", "C", "z"):
        arguments[name] = arguments[name][:, :length]
    with pytest.raises(RuntimeError, match=f"selective_scan_fwd: {message}"):
        ops().selective_scan_fwd(**arguments)


def test_scan_refuses_float64():
    with pytest.raises(RuntimeError, match="u must be float32, bfloat16 or float16, got float64"):
        ops().selective_scan_fwd(**scan_arguments(dtype=torch.float64))


def test_scan_refuses_more_states_than_its_kernels_hold():
    with pytest.raises(RuntimeError, match="A must have 1 to 256 states, got 257"):
        ops().selective_scan_fwd(**scan_arguments(dstate=257))


def test_backward_scan_refuses_a_slice_of_the_checkpoints():
    arguments = scan_arguments()
    out, last, checkpoints = ops().selective_scan_fwd(**arguments)
    shifted = torch.zeros(checkpoints.numel() + 1)[1:].view(checkpoints.shape)
    with pytest.raises(RuntimeError, match="must be those of the forward pass, got a slice"):
        ops().selective_scan_bwd(dout=out, dlast_state=last, checkpoints=shifted, **arguments)


def test_convolution_refuses_more_taps_than_its_kernels_hold():
    x, weight = torch.zeros(1, 4, 2), torch.zeros(2, 33)
    with pytest.raises(RuntimeError, match="weight must have 1 to 32 taps, got 33"):
        ops().causal_conv1d_fwd(x, weight, None, None, False, False)


def samples(tensors: dict, batch: int) -> dict:
    """One sample's tensors for many samples, without their memory: the launch is refused before
    any result is allocated."""
    return {
        name: x.expand(batch, *x.shape[1:]) if name in ("u", "delta", "B", "C", "z", "x") else x
        for name, x in tensors.items()
    }


TOO_MANY = (
    f"the launch must have fewer than 2\\^31 blocks of 128 threads, got {2**31}; split the batch"
)


def test_forward_scan_refuses_more_blocks_than_a_launch_takes():
    arguments = samples(scan_arguments(initial_state=False), 2**31)
    with pytest.raises(RuntimeError, match=f"selective_scan_fwd: {TOO_MANY}"):
        ops().selective_scan_fwd(**arguments)


def test_backward_scan_refuses_more_blocks_than_a_launch_takes():
    """10 states are one lane forward, where 2^29 blocks would do, and four lanes backward."""
    arguments = samples(scan_arguments(initial_state=False, dim=128, dstate=10), 2**29)
    with pytest.raises(RuntimeError, match=f"selective_scan_bwd: {TOO_MANY}"):
        ops().selective_scan_bwd(
            dout=arguments["u"],
            dlast_state=None,
            checkpoints=torch.zeros(0),
            **arguments,
        )


@pytest.mark.parametrize(
    "op, batch, length", [("causal_conv1d_fwd", 2**30, 33), ("causal_conv1d_bwd", 2**30, 65)]
)
def test_convolution_refuses_more_blocks_than_a_launch_takes(op, batch, length):
    """A thread has 32 steps forward and 64 backward."""
    x, weight = torch.zeros(1, length, 2).expand(batch, -1, -1), torch.zeros(2, 4)
    gradient = (x,) if op.endswith("bwd") else ()
    with pytest.raises(RuntimeError, match=f"{op}: {TOO_MANY}"):
        getattr(ops(), op)(*gradient, x, weight, None, None, False, False)
