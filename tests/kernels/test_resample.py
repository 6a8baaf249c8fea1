"""align, pool and interpolate against PyTorch's own resampling, and against their promise about
padding."""

import pytest
import torch
import torch.nn.functional as F

from cmimtl_kernels import resample
from cmimtl_kernels.resample import align, interpolate, pool

SIZES = [(1, 1), (1, 5), (5, 1), (5, 9), (9, 5), (7, 7), (32, 33)]


@pytest.fixture(autouse=True, params=[True, False], ids=["matrix", "rows"])
def way(request, monkeypatch):
    """Both ways to read between two steps."""
    monkeypatch.setattr(resample, "_as_matrix", lambda n, length, dim: request.param)


def _with_torch(kind, x, n):
    x = x.transpose(1, 2)
    if kind is align:
        out = F.interpolate(x, size=n, mode="linear", align_corners=False)
    elif kind is interpolate:
        out = F.interpolate(x, size=n, mode="linear", align_corners=True)
    else:
        out = F.adaptive_avg_pool1d(x, n)
    return out.transpose(1, 2)


@pytest.mark.parametrize("kind", [align, interpolate, pool])
@pytest.mark.parametrize("m, n", SIZES)
def test_without_lengths_it_is_torch(kind, m, n):
    x = torch.randn(2, m, 3, dtype=torch.float64)
    torch.testing.assert_close(kind(x, n), _with_torch(kind, x, n), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", [align, interpolate, pool])
def test_each_sample_is_resampled_by_its_own_lengths(kind):
    """What the padding holds, and how much there is of it, changes nothing."""
    lengths, n_lengths = torch.tensor([4, 7, 1]), torch.tensor([6, 3, 8])
    x = torch.randn(3, 7, 5, dtype=torch.float64)
    for i, m in enumerate(lengths):
        x[i, m:] = float("nan")
    x.requires_grad_()
    out = kind(x, 8, lengths, n_lengths)
    for i, (m, k) in enumerate(zip(lengths, n_lengths, strict=True)):
        expected = _with_torch(kind, x[i : i + 1, :m].detach(), int(k))[0]
        torch.testing.assert_close(out[i, :k].detach(), expected, rtol=1e-12, atol=1e-12)
        assert not out[i, k:].any()
    out.sum().backward()
    assert x.grad.isfinite().all()
    for i, m in enumerate(lengths):
        assert not x.grad[i, m:].any()


@pytest.mark.parametrize("kind", [align, interpolate, pool])
@pytest.mark.parametrize(
    "lengths, n_lengths", [((0, 3), (4, 4)), ((3, 3), (0, 4)), ((0, 0), (0, 0))]
)
def test_a_sample_without_steps_gives_zeros(kind, lengths, n_lengths):
    x = torch.randn(2, 3, 2)
    out = kind(x, 4, torch.tensor(lengths), torch.tensor(n_lengths))
    for i, (m, k) in enumerate(zip(lengths, n_lengths, strict=True)):
        if m == 0 or k == 0:
            assert not out[i].any()


@pytest.mark.parametrize("kind", [align, interpolate, pool])
def test_the_identity_is_exact(kind):
    x = torch.randn(2, 6, 3)
    assert kind(x, 6) is x
    lengths = torch.tensor([6, 4])
    out = kind(x, 6, lengths, lengths)
    for i, m in enumerate(lengths):
        assert torch.equal(out[i, :m], x[i, :m])


@pytest.mark.parametrize("kind", [align, interpolate, pool])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_dtype_is_kept(kind, dtype):
    x = torch.randn(2, 6, 3, dtype=dtype)
    assert kind(x, 9).dtype == dtype
    assert kind(x, 9, torch.tensor([2, 6])).dtype == dtype
