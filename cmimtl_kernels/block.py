"""`CrossMambaBlock`, which fuses two streams by one interleaved selective scan, and `CrossMamba`,
a stack of such blocks."""

import functools
import math
import operator

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from cmimtl_kernels.checks import (
    Lengths,
    autocast_dtype,
    check_float,
    check_lengths,
    check_rank,
    dtype_name,
)
from cmimtl_kernels.ops import cross_selective_scan, selective_scan
from cmimtl_kernels.precision import KeepsFloat32
from cmimtl_kernels.reference import accumulation_dtype
from cmimtl_kernels.registration import inside_transform
from cmimtl_kernels.resample import align, align_all, blank_padding, interpolate, pool
from cmimtl_kernels.submodules import convolve, is_plain, step_size

INTERLEAVE_KINDS = ("product-sum", "gated")


class CrossMambaBlock(KeepsFloat32):
    """Fuse a visual and a text stream, with a residual connection around the fusion.

        n_m        = norm(m)                      for both streams m, with the same weights
        [u_m, z_m] = in_proj(n_m)                 v is the visual stream, t the text stream
        u_m        = silu(conv1d(u_m))
        u_t, z_t   = align(u_t), align(z_t)       resampled to the length of the visual stream
        x          = u_v * u_t and u_v + u_t, interleaved
        [r, B, C]  = x_proj(x)
        y_v, y_t   = cross_selective_scan(u_v, u_t, dt_proj(r), A, B, C, D, z_v, z_t)
        visual     = visual + out_proj(y_v)
        text       = text + out_proj(align(y_t))  resampled to the length of the text stream

    Source: CMI-MTL (arXiv 2511.01357). `interleave="gated"` is the block of the authors' released
    code: two separate scans under one shared gate.

    Parameter names are those of `mamba_ssm.Mamba`, and of Vision Mamba for the second direction, so
    `load_state_dict(mixer_state, strict=False)` takes a Mamba mixer's weights.

    A sub-module may be replaced, adapted, parametrised, quantised, sharded or hooked into. The
    convolution and the projection of the step size are then not fused with what follows them.

    The first output of a block that scans in one direction depends on the first tokens alone. So
    read out the block by a masked mean, or set `bidirectional=True`; never read a single position.

    Args:
        d_model: number of features of a token, in both streams.
        d_state: number of states of a channel.
        d_conv: width of the convolution.
        expand: number of the scan's channels, in multiples of d_model.
        dt_rank: rank of the step-size projection, or "auto": ceil(d_model / 16).
        interleave: "product-sum" or "gated".
        bidirectional: add a second scan from the last token to the first, with weights of its own.
        dt_min, dt_max, dt_init_floor: range of the step sizes at initialisation.
        conv_bias, bias: whether the convolution and the projections in and out have a bias.
        norm_eps: epsilon of the LayerNorm.
        recompute: keep only the inputs of the norm and the outputs of in_proj for the backward
            pass, which computes everything between the two big projections again.
        backend: which kernels run the block, as in `cmimtl_kernels.selective_scan`.
    Shapes:
        visual is (batch, L_v, d_model) and text is (batch, L_t, d_model), for any L_v and L_t.
        Where samples are padded, visual_lengths and text_lengths, (batch,) integers, say how many
        steps of each are valid. The outputs have the shapes of the inputs. Padded steps are never
        read, whatever they hold.
    Raises:
        ValueError: an option or an input does not fit; the message names it and what it got.
    Memory:
        With `recompute`, batch * (L_v + L_t) * (1 + 2 * expand) * d_model elements are kept for the
        backward pass: the streams and the outputs of in_proj.
    Examples:
        >>> block = CrossMambaBlock(d_model=32)
        >>> visual, text = block(torch.randn(2, 9, 32), torch.randn(2, 5, 32))
        >>> visual.shape, text.shape
        (torch.Size([2, 9, 32]), torch.Size([2, 5, 32]))
    """

    def __init__(
        self,
        d_model: int,
        d_state: int = 16,
        d_conv: int = 4,
        expand: int = 2,
        dt_rank: int | str = "auto",
        *,
        interleave: str = "product-sum",
        bidirectional: bool = False,
        dt_min: float = 1e-3,
        dt_max: float = 1e-1,
        dt_init_floor: float = 1e-4,
        conv_bias: bool = True,
        bias: bool = False,
        norm_eps: float = 1e-5,
        recompute: bool = True,
        backend: str = "auto",
        device=None,
        dtype=None,
    ):
        super().__init__()
        for name, value in dict(
            d_model=d_model, d_state=d_state, d_conv=d_conv, expand=expand
        ).items():
            if not _is_count(value):
                raise ValueError(
                    f"CrossMambaBlock: {name} must be a positive integer, got {value!r}"
                )
        if dt_rank != "auto" and not _is_count(dt_rank):
            raise ValueError(
                f"CrossMambaBlock: dt_rank must be a positive integer or 'auto', got {dt_rank!r}"
            )
        if not 0 < dt_min <= dt_max:
            raise ValueError(
                "CrossMambaBlock: dt_min must be positive and at most dt_max, got"
                f" dt_min={dt_min!r} and dt_max={dt_max!r}"
            )
        if interleave not in INTERLEAVE_KINDS:
            raise ValueError(
                f"CrossMambaBlock: interleave must be one of {INTERLEAVE_KINDS}, got {interleave!r}"
            )
        self.d_model, self.d_state, self.d_conv = d_model, d_state, d_conv
        self.d_inner = expand * d_model
        self.dt_rank = math.ceil(d_model / 16) if isinstance(dt_rank, str) else dt_rank
        self.dt_min, self.dt_max, self.dt_init_floor = dt_min, dt_max, dt_init_floor
        self.interleave, self.bidirectional, self.backend = interleave, bidirectional, backend
        self.recompute = recompute

        factory = {"device": device, "dtype": dtype}
        self.norm = nn.LayerNorm(d_model, eps=norm_eps, **factory)
        self.in_proj = nn.Linear(d_model, 2 * self.d_inner, bias=bias, **factory)
        self.out_proj = nn.Linear(self.d_inner, d_model, bias=bias, **factory)
        for suffix in self._directions():
            self._add_direction(suffix, conv_bias, factory)
        self.reset_parameters()

    def _directions(self) -> tuple[str, ...]:
        """The suffixes of the parameters' names: of the scan forward in time, then backward."""
        return ("", "_b") if self.bidirectional else ("",)

    def _add_direction(self, suffix: str, conv_bias: bool, factory: dict) -> None:
        conv1d = nn.Conv1d(
            self.d_inner,
            self.d_inner,
            self.d_conv,
            groups=self.d_inner,
            padding=self.d_conv - 1,
            bias=conv_bias,
            **factory,
        )
        x_proj = nn.Linear(self.d_inner, self.dt_rank + 2 * self.d_state, bias=False, **factory)
        dt_proj = nn.Linear(self.dt_rank, self.d_inner, bias=True, **factory)
        for name, module in dict(conv1d=conv1d, x_proj=x_proj, dt_proj=dt_proj).items():
            self.add_module(name + suffix, module)
        # A_log stays float32 whatever dtype the block has: exp(delta * A), multiplied up over
        # thousands of steps, needs it.
        device = factory["device"]
        A_log = nn.Parameter(
            torch.empty(self.d_inner, self.d_state, dtype=torch.float32, device=device)
        )
        D = nn.Parameter(torch.empty(self.d_inner, dtype=torch.float32, device=device))
        for name, parameter in (
            ("A_log" if not suffix else f"A{suffix}_log", A_log),
            ("D" + suffix, D),
        ):
            self.register_parameter(name, parameter)
            # By this mark Mamba's training code keeps weight decay off a parameter. What was
            # registered is marked: accelerate's empty models put another parameter there.
            getattr(self, name)._no_weight_decay = True

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initialise the parameters that Mamba initialises by hand.

        A_log is log(1), …, log(d_state) for every channel, and D is 1. dt_proj.weight is drawn
        from U(±dt_rank^-1/2). dt_proj.bias is the inverse softplus of a step size drawn
        log-uniformly from [dt_min, dt_max], and no smaller than dt_init_floor.

        Source: Gu & Dao 2023, section 3.6.
        """
        for suffix in self._directions():
            _, _, dt_proj, A_log, D = self._parameters_of(suffix)
            states = torch.arange(1, self.d_state + 1, dtype=torch.float32, device=A_log.device)
            A_log.copy_(states.log().expand_as(A_log))
            D.fill_(1.0)
            bound = self.dt_rank**-0.5
            dt_proj.weight.uniform_(-bound, bound)
            low, high = math.log(self.dt_min), math.log(self.dt_max)
            step = torch.rand(self.d_inner, dtype=torch.float32, device=A_log.device)
            step = torch.exp(step * (high - low) + low).clamp(min=self.dt_init_floor)
            dt_proj.bias.copy_(step + torch.log(-torch.expm1(-step)))  # softplus(bias) = step

    def _parameters_of(self, suffix: str):
        """The parameters of one direction: (conv1d, x_proj, dt_proj, A_log, D)."""
        A_log = self.A_log if not suffix else getattr(self, f"A{suffix}_log")
        modules = (getattr(self, name + suffix) for name in ("conv1d", "x_proj", "dt_proj"))
        return *modules, A_log, getattr(self, "D" + suffix)

    def extra_repr(self) -> str:
        return (
            f"d_model={self.d_model}, d_state={self.d_state}, d_conv={self.d_conv},"
            f" interleave={self.interleave!r}, bidirectional={self.bidirectional},"
            f" backend={self.backend!r}"
        )

    def forward(
        self,
        visual: Tensor,
        text: Tensor,
        visual_lengths: Lengths | None = None,
        text_lengths: Lengths | None = None,
    ) -> tuple[Tensor, Tensor]:
        self._check_inputs(visual, text)
        op = "CrossMambaBlock"
        lengths = (
            check_lengths(op, visual_lengths, visual, visual.shape[1], "visual_lengths"),
            check_lengths(op, text_lengths, text, text.shape[1], "text_lengths"),
        )
        sizes = [visual.shape[1], text.shape[1]]
        uz = self._keep_inputs(self._project_in, visual, text, *lengths)
        fuse = self._product_sum if self.interleave == "product-sum" else self._gated
        y_v, y_t = self._keep_inputs(fuse, uz, sizes, *lengths).split(sizes, 1)
        return visual + y_v, text + y_t

    def _keep_inputs(self, part, *inputs):
        """Return part(*inputs), of whose tensors autograd keeps only the inputs.

        The backward pass runs the part again, up to the last tensor that it needs: the input of the
        projection at the part's end. So no big GEMM is computed twice.
        """
        # checkpoint works by hooks on saved tensors, which torch.func and a trace do not have.
        if not self.recompute or not torch.is_grad_enabled() or _without_functions():
            return part(*inputs)
        # What the block is made of draws no random numbers; the dropout of an adapter does.
        random = not all(is_plain(module) for module in self.children())
        return checkpoint(part, *inputs, use_reentrant=False, preserve_rng_state=random)

    def _project_in(self, visual, text, visual_lengths, text_lengths):
        """Project both streams, one after the other, in one GEMM.

        -> (batch, L_v + L_t, 2 * d_inner)
        """
        # Otherwise the contents of the padding would reach the gradients of the weights.
        streams = (blank_padding(visual, visual_lengths), blank_padding(text, text_lengths))
        return self.in_proj(self.norm(torch.cat(streams, 1)))

    def _check_inputs(self, visual: Tensor, text: Tensor) -> None:
        op = "CrossMambaBlock"
        for name, x in (("visual", visual), ("text", text)):
            check_float(op, name, x)
            check_rank(op, name, x, 3, f"(batch, length >= 1, d_model={self.d_model})")
            if x.shape[2] != self.d_model or x.shape[1] == 0:
                raise ValueError(
                    f"{op}: {name} must have shape (batch, length >= 1,"
                    f" d_model={self.d_model}), got {tuple(x.shape)}"
                )
        if visual.shape[0] != text.shape[0]:
            raise ValueError(
                f"{op}: text must have the batch of visual ({visual.shape[0]}), got {text.shape[0]}"
            )
        if visual.device != text.device:
            raise ValueError(f"{op}: text must be on {visual.device}, got {text.device}")
        # Autocast, and what stands in the place of these two, may take any dtype.
        plain = is_plain(self.norm) and is_plain(self.in_proj)
        if plain and autocast_dtype(visual.device.type) is None:
            dtype = self.in_proj.weight.dtype
            if torch.promote_types(visual.dtype, text.dtype) != dtype:
                name, x = ("text", text) if visual.dtype == dtype else ("visual", visual)
                raise ValueError(
                    f"{op}: {name} must be {dtype_name(dtype)}, as the block is, got"
                    f" {dtype_name(x.dtype)}"
                )

    def _product_sum(self, uz, sizes, visual_lengths, text_lengths):
        """Run the interleaved scan in each direction, add the outputs and project them.

        -> (batch, L_v + L_t, d_model): what is added to each stream.
        """
        n, n_t = sizes
        u_v, z_v, u_t, z_t = _take_apart(uz, sizes)
        convolved_t = [
            self._convolve(self._parameters_of(suffix)[0], u_t, text_lengths, suffix == "_b")
            for suffix in self._directions()
        ]
        z_t, *convolved_t = align_all((z_t, *convolved_t), n, text_lengths, visual_lengths)
        outs = []
        for suffix, c_t in zip(self._directions(), convolved_t, strict=True):
            conv1d, x_proj, dt_proj, A_log, D = self._parameters_of(suffix)
            reverse = suffix == "_b"
            c_v = self._convolve(conv1d, u_v, visual_lengths, reverse)
            delta, delta_bias, B, C = self._project_tokens(x_proj, dt_proj, c_v, c_t)
            out = cross_selective_scan(
                c_v,
                c_t,
                delta,
                _state_matrix(A_log, delta),
                B,
                C,
                D,
                z_v,
                z_t,
                delta_bias,
                delta_softplus=True,
                lengths=visual_lengths,
                reverse=reverse,
                backend=self.backend,
            )
            outs.append(out)
        # Both directions have the same gate, so the sum of gated outputs is the gated sum.
        y_v, y_t = (functools.reduce(operator.add, y) for y in zip(*outs, strict=True))
        y_t = align(y_t, n_t, visual_lengths, text_lengths)
        return self.out_proj(torch.cat((y_v, y_t), 1))

    def _gated(self, uz, sizes, visual_lengths, text_lengths):
        """Run two separate scans under one gate, as the authors released. -> as `_product_sum`."""
        n_v, n_t = sizes
        u_v, z_v, u_t, z_t = _take_apart(uz, sizes)
        gate = F.silu(z_v * pool(z_t, n_v, text_lengths, visual_lengths))
        y_v = self._scan_alone(u_v, visual_lengths)
        y_t = pool(self._scan_alone(u_t, text_lengths), n_v, text_lengths, visual_lengths)
        y_t = interpolate(y_t * gate, n_t, visual_lengths, text_lengths)
        return self.out_proj(torch.cat((y_v * gate, y_t), 1))

    def _scan_alone(self, u: Tensor, lengths: Tensor | None) -> Tensor:
        """Run one stream's own selective scan in each direction, and add the outputs."""
        outs = []
        for suffix in self._directions():
            conv1d, x_proj, dt_proj, A_log, D = self._parameters_of(suffix)
            reverse = suffix == "_b"
            x = self._convolve(conv1d, u, lengths, reverse)
            delta, delta_bias, B, C = self._project(x_proj, dt_proj, x)
            out = selective_scan(
                x,
                delta,
                _state_matrix(A_log, delta),
                B,
                C,
                D,
                delta_bias=delta_bias,
                delta_softplus=True,
                lengths=lengths,
                reverse=reverse,
                backend=self.backend,
            )
            outs.append(out)
        return functools.reduce(operator.add, outs)

    def _convolve(
        self, conv1d: nn.Conv1d, u: Tensor, lengths: Tensor | None, reverse: bool
    ) -> Tensor:
        return convolve(conv1d, u, lengths, reverse=reverse, backend=self.backend)

    def _project_tokens(self, x_proj: nn.Linear, dt_proj: nn.Linear, v: Tensor, t: Tensor):
        """Project the interleaved tokens of v and t, (batch, length, d_inner), as `_project`.

        Not the tokens are interleaved, but the few columns that they are projected to.
        """
        return self._split(dt_proj, torch.stack((x_proj(v * t), x_proj(v + t)), 2).flatten(1, 2))

    def _project(self, x_proj: nn.Linear, dt_proj: nn.Linear, x: Tensor):
        """Project tokens x, (batch, steps, d_inner), to what the scan depends on.

        -> delta (batch, steps, d_inner); the bias of it that the scan is left to add, if any; B and
        C (batch, steps, d_state).
        """
        return self._split(dt_proj, x_proj(x))

    def _split(self, dt_proj: nn.Linear, projected: Tensor):
        r, B, C = projected.split((self.dt_rank, self.d_state, self.d_state), dim=-1)
        return *step_size(dt_proj, r), B, C


class CrossMamba(nn.Module):
    """A stack of `CrossMambaBlock`s over the same two streams.

    Args:
        d_model: number of features of a token, in both streams.
        n_layers: number of blocks.
        options: every other option of `CrossMambaBlock`.
    Shapes: those of `CrossMambaBlock`.
    Examples:
        >>> fusion = CrossMamba(d_model=32, n_layers=2, bidirectional=True)
        >>> visual, text = fusion(torch.randn(2, 9, 32), torch.randn(2, 5, 32))
    """

    def __init__(self, d_model: int, n_layers: int, **options):
        super().__init__()
        if not _is_count(n_layers):
            raise ValueError(f"CrossMamba: n_layers must be a positive integer, got {n_layers!r}")
        self.layers = nn.ModuleList(CrossMambaBlock(d_model, **options) for _ in range(n_layers))

    def forward(
        self,
        visual: Tensor,
        text: Tensor,
        visual_lengths: Lengths | None = None,
        text_lengths: Lengths | None = None,
    ) -> tuple[Tensor, Tensor]:
        for layer in self.layers:
            visual, text = layer(visual, text, visual_lengths, text_lengths)
        return visual, text


def _is_count(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _without_functions() -> bool:
    return inside_transform() or torch.jit.is_tracing()


def _state_matrix(A_log: Tensor, delta: Tensor) -> Tensor:
    """A, in the dtype that the states of a scan with these step sizes have."""
    return -torch.exp(A_log.to(accumulation_dtype(delta.dtype)))


def _take_apart(uz: Tensor, sizes: list[int]) -> tuple[Tensor, ...]:
    """uz (batch, L_v + L_t, 2 * d_inner) -> u_v, z_v, u_t, z_t, which are views of uz."""
    # torch.func takes only functions with a setup_context, and those must not return views. A trace
    # takes none.
    return _parts(uz, sizes) if _without_functions() else _TakeApart.apply(uz, sizes)


def _parts(uz: Tensor, sizes: list[int]) -> tuple[Tensor, ...]:
    return tuple(y for x in uz.split(sizes, 1) for y in x.chunk(2, dim=-1))


class _TakeApart(torch.autograd.Function):
    """`_parts` with a backward pass of its own, which writes each gradient once.

    The backward passes of split and chunk would join the gradients one after the other, with a new
    tensor of the size of uz each time.
    """

    @staticmethod
    def forward(ctx, uz, sizes):
        ctx.sizes = sizes
        return _parts(uz, sizes)

    @staticmethod
    def backward(ctx, *grads):
        batch, _, d_inner = grads[0].shape
        duz = grads[0].new_empty(batch, sum(ctx.sizes), 2 * d_inner)
        for to, grad in zip(_parts(duz, ctx.sizes), grads, strict=True):
            to.copy_(grad)
        return duz, None
