"""transformers' Mamba models on this library's kernels, on the device that the tensors are on.

transformers picks its scan when a modeling file is imported. Where the package mamba_ssm is
installed, it picks that one's scan, which runs on CUDA alone; elsewhere it runs a loop over the
time steps. `use_kernels` puts this library's functions in the place of that choice, in training,
inference and generation with a cache.

Examples:
    >>> import torch
    >>> from transformers import MambaConfig, MambaForCausalLM
    >>> sizes = dict(hidden_size=8, num_hidden_layers=1, vocab_size=20)
    >>> model = MambaForCausalLM(MambaConfig(**sizes))
    >>> with use_kernels():
    ...     logits = model(torch.tensor([[1, 2, 3]])).logits
    >>> logits.shape
    torch.Size([1, 3, 20])
"""

import importlib
import threading
from types import ModuleType

from torch import Tensor

from cmimtl_kernels.compat import mamba_ssm

ARCHITECTURES = ("mamba", "falcon_mamba", "jamba", "zamba")


class use_kernels:
    """Make transformers' Mamba models use the kernels, from this call on or inside a with block.

        use_kernels()                      from now on
        with use_kernels(): ...            inside the block
        use = use_kernels(); use.undo()    until it is undone

    A use concerns the models that exist already and those made later, in every thread of the
    process. Uses may overlap in any order, in one thread or several: transformers' own functions
    come back when the last use has ended, whether by an exception or not.

    The models' results are those of their plain PyTorch path up to rounding; in bfloat16 and
    float16 they are nearer to the exact ones, as the states stay in float32. The configuration's
    `use_mambapy` and `use_associative_scan` have no influence meanwhile.

    Args:
        architectures: which of `ARCHITECTURES`; all where none is given. Their modeling files are
            imported.
    Raises:
        ValueError: an architecture is not one of them.
        ImportError: transformers is not installed, or this version of it keeps its functions
            elsewhere; the message lists what is missing.
    """

    def __init__(self, *architectures: str):
        self._architectures: tuple[str, ...] = ()
        for name in architectures:
            if name not in ARCHITECTURES:
                raise ValueError(
                    f"use_kernels: architectures must be among {', '.join(ARCHITECTURES)},"
                    f" got {name!r}"
                )
        wanted = tuple(dict.fromkeys(architectures or ARCHITECTURES))
        with _LOCK:
            modules = {name: _modeling(name) for name in wanted}  # raises before anything changes
            for name, module in modules.items():
                _begin(name, module)
        self._architectures = wanted

    def undo(self) -> None:
        """End this use; ending it again changes nothing."""
        with _LOCK:
            ended, self._architectures = self._architectures, ()
            for name in ended:
                _end(name)

    def __enter__(self) -> "use_kernels":
        return self

    def __exit__(self, *exception) -> None:
        self.undo()


def _causal_conv1d_fn(
    hidden_states: Tensor,  # (batch, dim, length)
    weight: Tensor,  # (dim, width)
    bias: Tensor | None = None,
    activation: str | None = None,
    seq_idx: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    **_,
) -> Tensor:
    if cu_seqlens is not None and seq_idx is None:
        raise ValueError(
            "causal_conv1d_fn: cu_seqlens must be None, got a tensor; give seq_idx to keep packed"
            " sequences apart"
        )
    fused, rest = _split_activation(activation)
    out = mamba_ssm.causal_conv1d_fn(hidden_states, weight, bias, seq_idx, activation=fused)
    return out if rest is None else rest(out)


def _causal_conv1d_update(
    hidden_states: Tensor,  # (batch, dim, length)
    conv_state: Tensor,  # (batch, dim, state_len), written
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
) -> Tensor:
    fused, rest = _split_activation(activation)
    out = mamba_ssm.causal_conv1d_update(hidden_states, conv_state, weight, bias, fused)
    return out if rest is None else rest(out)


def _split_activation(activation: str | None):
    """Split an activation into what the convolution fuses and what is left to transformers."""
    if activation in (None, "silu", "swish"):
        return activation, None
    from transformers.activations import ACT2FN

    return None, ACT2FN[activation]


def _selective_scan(
    hidden_states: Tensor,  # (batch, dim, length)
    dt: Tensor,  # (batch, dim, length)
    A: Tensor,  # (dim, dstate)
    B: Tensor,  # (batch, dstate, length)
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
    **_,
) -> Tensor | tuple[Tensor, Tensor]:
    return mamba_ssm.selective_scan_fn(
        hidden_states, dt, A, B, C, D, z, delta_bias, delta_softplus, return_last_state
    )


def _selective_state_update(
    state: Tensor,  # (batch, dim, dstate), written
    hidden_states: Tensor,  # (batch, dim)
    dt: Tensor,  # (batch, dim)
    A: Tensor,
    B: Tensor,  # (batch, dstate)
    C: Tensor,
    D: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    z: Tensor | None = None,
    **_,
) -> Tensor:
    return mamba_ssm.selective_state_update(
        state, hidden_states, dt, A, B, C, D, z, dt_bias, dt_softplus
    )


def _inner_fn(*_, **__) -> None:
    """Return None, which makes a mixer go on with the other functions, also in training.

    mamba_ssm's mamba_inner_fn normalises FalconMamba's step size after its projection, and the
    model does so before it. Training through mamba_inner_fn would train another model.
    """


_FUNCTIONS = {
    "causal_conv1d_fn": _causal_conv1d_fn,
    "causal_conv1d_update": _causal_conv1d_update,
    "mamba_selective_scan": _selective_scan,
    "mamba_selective_state_update": _selective_state_update,
    "mamba_inner_fn": _inner_fn,
}
_ABSENT = {"zamba": {"mamba_inner_fn"}}  # its mixer has several heads

# Uses are counted, not stacked, so that threads may end theirs in any order.
_LOCK = threading.RLock()
_USES: dict[str, int] = {}
_ORIGINALS: dict[str, dict[str, object]] = {}


def _modeling(architecture: str) -> ModuleType:
    import transformers

    path = f"transformers.models.{architecture}.modeling_{architecture}"
    module: ModuleType | None
    try:
        module = importlib.import_module(path)
    except ModuleNotFoundError:
        module = None
    missing = [name for name in _names(architecture) if not hasattr(module, name)]
    if module is None or missing:
        raise ImportError(
            f"use_kernels: {path} must have {', '.join(missing)}, which transformers"
            f" {transformers.__version__} has not; this was written for transformers 5.23"
        )
    return module


def _names(architecture: str) -> list[str]:
    return [name for name in _FUNCTIONS if name not in _ABSENT.get(architecture, ())]


def _begin(architecture: str, module: ModuleType) -> None:
    _USES[architecture] = _USES.get(architecture, 0) + 1
    if _USES[architecture] == 1:
        names = _names(architecture)
        _ORIGINALS[architecture] = {name: getattr(module, name) for name in names}
        for name in names:
            setattr(module, name, _FUNCTIONS[name])


def _end(architecture: str) -> None:
    _USES[architecture] -= 1
    if _USES[architecture] == 0:
        module = _modeling(architecture)
        for name, original in _ORIGINALS.pop(architecture).items():
            # A function that somebody else has put there since stays: it is theirs to take away.
            if getattr(module, name) is _FUNCTIONS[name]:
                setattr(module, name, original)
