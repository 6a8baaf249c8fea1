"""Resampling of padded streams in time, for the blocks: `align`, `pool` and `interpolate`.

Each function maps a sample's m valid steps to k valid steps, never reads a padded step, and returns
the input itself where nothing is to be done. All are plain PyTorch: they take little time beside
the GEMMs of a block.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from cmimtl_kernels.reference import accumulation_dtype, valid_steps


def align(
    x: Tensor, n: int, lengths: Tensor | None = None, n_lengths: Tensor | None = None
) -> Tensor:
    """Linear resampling with half-pixel centres, clamped at the ends; the identity where m == k.

    Output step j reads the input at (j + 1/2) * m / k - 1/2.

    Args:
        x: (batch, length, dim).
        n: number of steps of the output.
        lengths: (batch,), the number m of valid input steps; length where None.
        n_lengths: (batch,), the number k of valid output steps; n where None.
    Returns:
        (batch, n, dim), dtype of x; 0 past the valid output steps.
    """
    return align_all((x,), n, lengths, n_lengths)[0]


def align_all(
    xs: Sequence[Tensor],
    n: int,
    lengths: Tensor | None = None,
    n_lengths: Tensor | None = None,
) -> Sequence[Tensor]:
    """`align` of several tensors of one shape, which read the same steps with the same weights."""
    if lengths is None and n_lengths is None and _known(xs[0].shape[1] == n):
        return xs
    return _read_linearly(xs, n, lengths, n_lengths, lambda j, m, k: (j + 0.5) * (m / k) - 0.5)


def interpolate(
    x: Tensor, n: int, lengths: Tensor | None = None, n_lengths: Tensor | None = None
) -> Tensor:
    """Linear resampling with aligned corners.

    Output step j reads the input at j * (m - 1) / (k - 1). Arguments and result are those of
    `align`.
    """
    if lengths is None and n_lengths is None and _known(x.shape[1] == n):
        return x
    (out,) = _read_linearly(
        (x,),
        n,
        lengths,
        n_lengths,
        lambda j, m, k: j * ((m - 1).clamp(min=0) / (k - 1).clamp(min=1)),
    )
    return out


def pool(
    x: Tensor, n: int, lengths: Tensor | None = None, n_lengths: Tensor | None = None
) -> Tensor:
    """Adaptive average pooling.

    Output step j is the mean of the input steps floor(j m / k) … ceil((j + 1) m / k) - 1. Arguments
    and result are those of `align`. With lengths, a tensor of weights (batch, n, length) is built.
    """
    length = x.shape[1]
    if lengths is None and n_lengths is None:
        if _known(length == n):
            return x
        if not torch.compiler.is_exporting():  # of which the function makes constants of its sizes
            return F.adaptive_avg_pool1d(x.transpose(1, 2), n).transpose(1, 2)
    m, k = _valid_counts(x, n, lengths, n_lengths)
    m, k = m[:, None].long(), k[:, None].clamp(min=1).long()
    j = torch.arange(n, device=x.device)
    start, stop = j * m // k, -((j + 1) * m // -k)  # (batch, n)
    i = torch.arange(length, device=x.device)
    inside = (i >= start[..., None]) & (i < stop[..., None]) & (i < m[..., None])
    weight = inside.to(accumulation_dtype(x.dtype)) / (stop - start).clamp(min=1)[..., None]
    x = blank_padding(x, lengths)
    return blank_padding((weight @ x.to(weight.dtype)).to(x.dtype), n_lengths)


def blank_padding(x: Tensor, lengths: Tensor | None) -> Tensor:
    """x with zeros at its padded steps, whose gradient is 0 too.

    So nothing in the padding, NaN included, reaches what is computed from the result.
    """
    if lengths is None:
        return x
    valid = valid_steps(lengths, x.shape[0], x.shape[1])
    return torch.where(valid[..., None], x, x.new_zeros(()))


def _valid_counts(
    x: Tensor, n: int, lengths: Tensor | None, n_lengths: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The valid steps m and k, (batch,), in float64.

    float32 could not tell neighbouring steps apart beyond 2**24.
    """
    batch, length, _ = x.shape
    full = torch.ones(batch, dtype=torch.float64, device=x.device)
    m = full * length if lengths is None else lengths.double()
    k = full * n if n_lengths is None else n_lengths.double()
    return m, k


def _known(condition: bool) -> bool:
    """The condition; in a program that is exported, whether it holds for all sizes that it takes.

    An answer for those of the example alone would bind the program to them.
    """
    if torch.compiler.is_exporting():
        from torch.fx.experimental.symbolic_shapes import statically_known_true

        return statically_known_true(condition)
    return condition


def _as_matrix(n: int, length: int, dim: int) -> bool:
    """Whether to resample by a product with a matrix, which is faster for short streams.

    Most elements of the matrix are 0. The other way reads two rows for each step, and its backward
    pass adds up what each row gets. To make the matrix costs the same for any dim.

    Measured on two cores, forward and backward, the product's time over that of the other way:

        between steps    dim 1536        dim 64
        32 and 577       a sixth         a third
        512 and 2048     half            three times
        1024 and 2048    more than one
    """
    most = min(dim, 512)
    return _known(n <= most) or _known(length <= most)


def _read_linearly(
    xs: Sequence[Tensor],
    n: int,
    lengths: Tensor | None,
    n_lengths: Tensor | None,
    position_of: Callable[[Tensor, Tensor, Tensor], Tensor],
) -> list[Tensor]:
    """Read each sample of each of xs at real positions, linearly between neighbours.

    position_of(j, m, k), with m and k (batch, 1), gives the positions, (batch, n). They are clamped
    to [0, m - 1].
    """
    batch, length, dim = xs[0].shape
    m, k = (count[:, None] for count in _valid_counts(xs[0], n, lengths, n_lengths))
    last = (m - 1).clamp(min=0)
    j = torch.arange(n, dtype=torch.float64, device=m.device)
    position = torch.minimum(position_of(j, m, k.clamp(min=1)).clamp(min=0), last)
    left = position.floor()
    right = torch.minimum(left + 1, last)
    weight = (position - left)[..., None].to(accumulation_dtype(xs[0].dtype))  # (batch, n, 1)
    if _as_matrix(n, length, dim):
        i = torch.arange(length, device=m.device)
        at_left, at_right = (i == side[..., None] for side in (left, right))
        matrix = torch.where(at_left, 1 - weight, 0) + torch.where(at_right, weight, 0)
    else:
        rows = torch.arange(batch, device=m.device)[:, None]
        steps = [side.long() for side in (left, right)]

    def read(x: Tensor) -> Tensor:
        x = blank_padding(x, lengths)
        if _as_matrix(n, length, dim):
            out = torch.matmul(matrix, x.to(weight.dtype))
        else:
            low, high = (x[rows, step].to(weight.dtype) for step in steps)
            out = torch.lerp(low, high, weight.expand_as(low))
        return blank_padding(out.to(x.dtype), n_lengths)

    return [read(x) for x in xs]
