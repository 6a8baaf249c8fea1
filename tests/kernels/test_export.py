"""Blocks that are exported with every size of their inputs dynamic: batch, and both lengths."""

import pytest
import torch

from cmimtl_kernels import CrossMamba
from cmimtl_kernels.testing import relative_l2

DYNAMIC = torch.export.Dim.DYNAMIC  # an error where the program would be bound to one size
# Equal lengths, and such as are resampled by a matrix in a call and by reading rows: d_inner is 16.
LENGTHS = [(9, 20), (20, 9), (6, 6), (40, 70)]


def arguments(batch, n_v, n_t, ragged):
    streams = dict(visual=torch.randn(batch, n_v, 8), text=torch.randn(batch, n_t, 8))
    if ragged:
        streams["visual_lengths"] = torch.tensor([n_v, 1, 4])[:batch]
        streams["text_lengths"] = torch.tensor([2, n_t, 0])[:batch]
    return streams


@pytest.mark.parametrize(
    "interleave, n_v, n_t, ragged, strict",
    [
        ("product-sum", 7, 5, False, False),
        ("product-sum", 6, 6, True, False),
        ("product-sum", 6, 6, False, True),
        ("gated", 7, 5, True, False),
    ],
)
def test_every_size_is_dynamic(interleave, n_v, n_t, ragged, strict):
    torch.manual_seed(0)
    stack = CrossMamba(8, 1, d_state=4, interleave=interleave).eval()
    example = arguments(2, n_v, n_t, ragged)
    sizes = {name: dict.fromkeys(range(min(x.dim(), 2)), DYNAMIC) for name, x in example.items()}
    with torch.no_grad():
        program = torch.export.export(
            stack, (), kwargs=example, dynamic_shapes=sizes, strict=strict
        )
        for lengths in LENGTHS:
            streams = arguments(3, *lengths, ragged)
            for found, expected in zip(program.module()(**streams), stack(**streams), strict=True):
                assert relative_l2(found, expected) < 1e-6
