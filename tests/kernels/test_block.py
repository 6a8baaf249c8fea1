"""CrossMambaBlock against its equations written out plainly, and what it promises about padding and
causality."""

from unittest import mock

import pytest
import torch
import torch.nn.functional as F

from cmimtl_kernels import CrossMamba, CrossMambaBlock, reference, resample, testing
from cmimtl_kernels.resample import align, interpolate, pool

KINDS = [(kind, both) for kind in ("product-sum", "gated") for both in (False, True)]
every_kind = pytest.mark.parametrize("kind, bidirectional", KINDS)


def _streams(batch=2, n_v=9, n_t=6, d_model=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(batch, n, d_model, generator=generator) for n in (n_v, n_t))


def _block(kind, bidirectional, d_model=16, **options):
    torch.manual_seed(3)
    return CrossMambaBlock(d_model, interleave=kind, bidirectional=bidirectional, **options)


def _by_the_equations(block, visual, text):
    """Steps 1-7 of the block for unpadded streams, with the reference ops, one line each."""
    n_v, n_t = visual.shape[1], text.shape[1]
    (u_v, z_v), (u_t, z_t) = (block.in_proj(block.norm(x)).chunk(2, -1) for x in (visual, text))

    def direction(b):
        A = -torch.exp(block.A_b_log if b else block.A_log)
        conv1d, x_proj, dt_proj = (getattr(block, n + b) for n in ("conv1d", "x_proj", "dt_proj"))
        options = dict(delta_softplus=True, delta_bias=dt_proj.bias, reverse=bool(b))

        def conv(u):
            u = u.flip(1) if b else u
            out = F.silu(conv1d(u.transpose(1, 2))[..., : u.shape[1]]).transpose(1, 2)
            return out.flip(1) if b else out

        def project(x):
            r, B, C = x_proj(x).split((block.dt_rank, block.d_state, block.d_state), -1)
            return r @ dt_proj.weight.T, B, C

        D = getattr(block, "D" + b)
        c_v, c_t = conv(u_v), conv(u_t)
        if block.interleave == "gated":
            return (
                reference.selective_scan(c, delta, A, B, C, D, **options)
                for c in (c_v, c_t)
                for delta, B, C in [project(c)]
            )
        c_t = align(c_t, n_v)
        delta, B, C = project(reference.interleave(c_v, c_t))
        return reference.cross_selective_scan(c_v, c_t, delta, A, B, C, D, **options)

    both = [tuple(direction(b)) for b in (("", "_b") if block.bidirectional else ("",))]
    y_v, y_t = (sum(ys) for ys in zip(*both, strict=True))
    if block.interleave == "gated":
        gate = F.silu(z_v * pool(z_t, n_v))
        y_v, y_t = y_v * gate, interpolate(pool(y_t, n_v) * gate, n_t)
    else:
        gate = F.silu(z_v * align(z_t, n_v))
        y_v, y_t = y_v * gate, align(y_t * gate, n_t)
    return visual + block.out_proj(y_v), text + block.out_proj(y_t)


@every_kind
@pytest.mark.parametrize("n_v, n_t", [(9, 6), (6, 9), (7, 7), (1, 5), (5, 1)])
def test_block_is_its_equations(kind, bidirectional, n_v, n_t):
    block = _block(kind, bidirectional)
    streams = tuple(_streams(n_v=n_v, n_t=n_t))

    def run(function):
        leaves = [x.clone().requires_grad_() for x in streams]
        outs = function(*leaves)
        weights = [torch.linspace(-1, 1, x.numel()).view_as(x) for x in outs]
        wanted = [*leaves, *block.parameters()]
        return [*outs, *torch.autograd.grad(outs, wanted, weights)]

    names = ["visual", "text", "dvisual", "dtext", *(n for n, _ in block.named_parameters())]
    expected = run(lambda v, t: _by_the_equations(block, v, t))
    for name, a, e in zip(names, run(block), expected, strict=True):
        assert testing.relative_l2(a, e) < 2e-5, name


@every_kind
def test_padding_never_changes_a_valid_output(kind, bidirectional):
    """More padding, and NaN in it, gives the same outputs and the same, finite gradients."""
    stack = CrossMamba(16, 2, interleave=kind, bidirectional=bidirectional)
    visual, text = _streams(n_v=9, n_t=6)
    n_v, n_t = torch.tensor([9, 5]), torch.tensor([2, 6])

    def run(extra, padding):
        v, t = (F.pad(x, (0, 0, 0, extra), value=padding) for x in (visual, text))
        for i in range(2):
            v[i, n_v[i] :], t[i, n_t[i] :] = padding, padding
        out_v, out_t = stack(v, t, n_v, n_t)
        valid = [out[i, :n] for out, ns in ((out_v, n_v), (out_t, n_t)) for i, n in enumerate(ns)]
        grads = torch.autograd.grad(sum(x.square().sum() for x in valid), stack.parameters())
        return [*valid, *grads]

    for a, b in zip(run(0, 0.0), run(7, float("nan")), strict=True):
        assert testing.relative_l2(b, a) < 1e-5
    alone = stack(visual[1:, :5], text[1:])
    together = stack(visual, text, n_v, n_t)
    assert testing.relative_l2(together[0][1, :5], alone[0][0]) < 1e-5
    assert testing.relative_l2(together[1][1], alone[1][0]) < 1e-5


@pytest.mark.parametrize("bidirectional", [False, True])
def test_which_outputs_a_token_reaches(bidirectional):
    """Causal: no output before the token. Bidirectional: every output of both streams."""
    block = _block("product-sum", bidirectional)
    visual, text = _streams(n_v=8, n_t=8)
    before = block(visual, text)
    visual[:, 5] = torch.randn(2, 16)  # adding a constant would vanish in the LayerNorm
    changed = [(a != b).any(-1).all(0) for a, b in zip(block(visual, text), before, strict=True)]
    for reached in changed:
        assert reached[5:].all()
        assert reached[:5].all() == bidirectional
        assert reached[:5].any() == bidirectional


@pytest.mark.parametrize("bidirectional", [False, True])
def test_what_steps_are_read_is_worked_out_once_each_way(monkeypatch, bidirectional):
    counts = mock.Mock(wraps=resample._valid_counts)
    monkeypatch.setattr(resample, "_valid_counts", counts)
    lengths = torch.tensor([9, 4]), torch.tensor([2, 6])
    _block("product-sum", bidirectional, recompute=False)(*_streams(), *lengths)
    assert (
        counts.call_count == 2
    )  # the text at the visual tokens, and what comes out back at its own


def test_a_sample_without_text_keeps_its_residual():
    block = _block("product-sum", False)
    visual, text = _streams()
    out_v, out_t = block(visual, text, text_lengths=torch.tensor([0, 6]))
    assert out_v.isfinite().all()
    assert torch.equal(out_t[0], text[0])


@every_kind
def test_parameters(kind, bidirectional):
    block = _block(kind, bidirectional, d_model=32)
    names = {n for n, _ in block.named_parameters()}
    mixer = {
        "A_log", "D", "in_proj.weight", "conv1d.weight", "conv1d.bias", "x_proj.weight",
        "dt_proj.weight", "dt_proj.bias", "out_proj.weight",
    }  # fmt: skip
    second = {
        "A_b_log", "D_b", "conv1d_b.weight", "conv1d_b.bias", "x_proj_b.weight", "dt_proj_b.weight",
        "dt_proj_b.bias",
    }  # fmt: skip
    assert names == mixer | {"norm.weight", "norm.bias"} | (second if bidirectional else set())
    step = F.softplus(block.dt_proj.bias)
    assert ((step > 0.99e-3) & (step < 0.101)).all()
    assert torch.allclose(torch.exp(block.A_log), torch.arange(1.0, 17.0).expand(64, 16))
    assert (block.D == 1).all() and block.dt_rank == 2


def test_a_mamba_mixer_loads():
    """The state dict of a mixer of the same sizes, by mamba_ssm's names and shapes."""
    d_inner, dt_rank, d_state, d_conv = 64, 2, 16, 4
    mixer = {
        "A_log": torch.randn(d_inner, d_state),
        "D": torch.randn(d_inner),
        "in_proj.weight": torch.randn(2 * d_inner, 32),
        "conv1d.weight": torch.randn(d_inner, 1, d_conv),
        "conv1d.bias": torch.randn(d_inner),
        "x_proj.weight": torch.randn(dt_rank + 2 * d_state, d_inner),
        "dt_proj.weight": torch.randn(d_inner, dt_rank),
        "dt_proj.bias": torch.randn(d_inner),
        "out_proj.weight": torch.randn(32, d_inner),
    }
    block = CrossMambaBlock(32)
    missing, unexpected = block.load_state_dict(mixer, strict=False)
    assert set(missing) == {"norm.weight", "norm.bias"} and not unexpected
    assert torch.equal(block.x_proj.weight, mixer["x_proj.weight"])


@every_kind
def test_low_precision_keeps_the_states_wide(kind, bidirectional):
    block = _block(kind, bidirectional, dtype=torch.bfloat16)
    assert block.A_log.dtype == block.D.dtype == torch.float32
    visual, text = (x.bfloat16() for x in _streams())
    out = block(visual, text)
    assert all(x.dtype == torch.bfloat16 for x in out)
    wide = _block(kind, bidirectional)
    wide.load_state_dict(block.state_dict())
    for a, b in zip(out, wide(visual.float(), text.float()), strict=True):
        assert testing.relative_l2(a, b) < 2e-2


@every_kind
def test_float64_is_float64_throughout(kind, bidirectional):
    block = _block(kind, bidirectional).double()
    streams = [x.double() for x in _streams()]
    for a, b in zip(block(*streams), _by_the_equations(block, *streams), strict=True):
        assert testing.relative_l2(a, b) < 1e-14


def test_one_step_moves_every_parameter():
    stack = CrossMamba(16, 2, bidirectional=True)
    before = {n: p.detach().clone() for n, p in stack.named_parameters()}
    visual, text = _streams()
    sum(x.square().mean() for x in stack(visual, text)).backward()
    torch.optim.SGD(stack.parameters(), lr=1.0).step()
    still = [n for n, p in stack.named_parameters() if torch.equal(p, before[n])]
    assert not still


@every_kind
def test_recomputation_changes_nothing_but_memory(kind, bidirectional):
    """The same bits, and only the streams and in_proj's outputs are kept."""
    streams = tuple(x.requires_grad_() for x in _streams(n_v=32, n_t=20))
    results, kept = {}, {}
    for recompute in (True, False):
        block = _block(kind, bidirectional, recompute=recompute)
        kept[recompute] = testing.kept_bytes(block, *streams)
        outs = block(*streams)
        wanted = [*streams, *block.parameters()]
        results[recompute] = [
            *outs,
            *torch.autograd.grad(sum(x.square().sum() for x in outs), wanted),
        ]
    for a, b in zip(results[True], results[False], strict=True):
        assert torch.equal(a, b)
    d_model, expand, batch, tokens = 16, 2, 2, 32 + 20
    assert kept[True] <= 4 * batch * tokens * (1 + 2 * expand) * d_model
    assert kept[False] > 2 * kept[True]
