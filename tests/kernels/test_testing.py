"""The test helpers fail when they must."""

import pytest
import torch

from cmimtl_kernels import reference, testing
from tests.kernels import matrix


def test_relative_l2():
    x = torch.randn(100)
    assert testing.relative_l2(x, x) == 0
    assert testing.relative_l2(x * 1.01, x) == pytest.approx(0.01, rel=1e-4)
    assert testing.relative_l2(torch.full((4,), 3.0), torch.zeros(4)) == 6.0
    spoiled = x.clone()
    spoiled[3] = float("nan")
    assert testing.relative_l2(spoiled, x) == float("inf")
    assert testing.relative_l2(x, spoiled) == float("inf")
    assert testing.relative_l2(spoiled, spoiled) == 0


@pytest.mark.parametrize("wrong", ["dA", "dC", "dinitial_state", "out_0", "out_1"])
@pytest.mark.parametrize("factor", [1 + 3e-5, float("nan")])
def test_check_op_sees_a_wrong_result(monkeypatch, wrong, factor):
    """Any one result off by 3e-5, or NaN, is out of tolerance, and the message names it."""
    right = testing.run_with_gradients

    def spoiled(function, inputs, *args, backend=None, **options):
        results = right(
            function, inputs, *args, **options | ({"backend": backend} if backend else {})
        )
        if backend:
            results[wrong] = results[wrong] * factor
        return results

    monkeypatch.setattr(testing, "run_with_gradients", spoiled)
    with pytest.raises(AssertionError, match=f"selective_scan on reference: {wrong} "):
        testing.check_op(
            "selective_scan", testing.scan_inputs(), backend="reference", delta_softplus=True
        )


@pytest.mark.parametrize("op", matrix.SCANS)
@pytest.mark.parametrize("softplus", [False, True])
def test_random_inputs_have_a_state_of_moderate_size(op, softplus):
    inputs = testing.scan_inputs(
        length=500, cross=op == "cross_selective_scan", delta_softplus=softplus
    )
    *_, last = getattr(reference, op)(**inputs, delta_softplus=softplus, return_last_state=True)
    assert 1e-3 < last.abs().mean() < 1e2


@pytest.mark.parametrize("layout", ["contiguous", "sliced", "transposed", "expanded"])
def test_layouts(layout):
    x = torch.randn(3, 5, 7)
    view = testing.with_layout(x, layout)
    assert torch.equal(view, x[:1].expand_as(x) if layout == "expanded" else x)
    assert view.is_contiguous() == (layout == "contiguous")
    if layout == "sliced":
        assert view._base.isnan().any()


def test_unknown_layout():
    with pytest.raises(ValueError, match=r"layout must be one of .* got 'diagonal'"):
        testing.with_layout(torch.zeros(1, 1, 1), "diagonal")


def test_poisoned_padding_is_all_and_only_the_padding():
    inputs = matrix.Case("cross_selective_scan", lengths=(4, 33)).inputs()
    assert inputs["v"][0, 4:].isnan().all() and not inputs["v"][0, :4].isnan().any()
    assert inputs["delta"][0, 8:].isnan().all() and not inputs["delta"][0, :8].isnan().any()
    assert not inputs["B"][1].isnan().any()


def test_gradients_are_the_same_for_every_dtype():
    """The incoming gradients do not depend on the dtype, else errors of rounding would be blamed on
    kernels."""
    seen = {}
    for dtype in (torch.float64, torch.bfloat16):
        x = torch.zeros(2, 3, dtype=dtype)
        seen[dtype] = testing.run_with_gradients(lambda x: x * 1, {"x": x})["dx"].double()
    assert torch.equal(seen[torch.float64], seen[torch.bfloat16])


def test_kept_bytes_counts_what_a_module_keeps():
    alive = torch._to_functional_tensor(torch.zeros(3))  # as torch.compile leaves some
    with pytest.raises(RuntimeError):
        alive.untyped_storage().data_ptr()
    x = torch.randn(10, 4, requires_grad=True)
    linear = torch.nn.Linear(4, 3)
    assert testing.kept_bytes(linear, x) == 4 * 40  # its input
    twice = torch.nn.Sequential(linear, torch.nn.Sigmoid(), torch.nn.Linear(3, 2))
    assert testing.kept_bytes(twice, x) == 4 * (40 + 30)  # the sigmoid's output serves two

    class Checkpointed(torch.nn.Module):
        def forward(self, x):
            hidden = x * 2
            return torch.utils.checkpoint.checkpoint(
                twice, hidden, use_reentrant=False, preserve_rng_state=False
            )

    assert testing.kept_bytes(Checkpointed(), x) == 4 * (40 + 40)  # its input and the checkpoint's
