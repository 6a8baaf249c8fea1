"""The fusions that take Cross-Mamba apart: what they have in common with it, and what they lack."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from cmimtl.experiments import fusion as study
from cmimtl.experiments import fusions
from cmimtl.modelling.config import CMIMTLConfig
from cmimtl.modelling.fusion import build_fusion
from cmimtl.modelling.presets import PRESETS
from cmimtl.names import FUSIONS
from cmimtl_kernels import CrossMambaBlock

CONTROLS = [name for name, place in FUSIONS.items() if place.startswith(fusions.__name__)]
QUERIES, WORDS, WIDTH = 8, 12, 96


def build(arm):
    changes = dict(arm.train.get("changes", {}))
    config = PRESETS["tiny"].config | changes
    torch.manual_seed(0)
    return build_fusion(CMIMTLConfig(**config, fusion=arm.train.get("fusion", study.OURS)))


def streams(*, seed=0):
    generator = torch.Generator().manual_seed(seed)
    visual, text = (
        torch.randn(2, n, WIDTH, generator=generator, requires_grad=True) for n in (QUERIES, WORDS)
    )
    return visual, text


def parameters(module):
    return sum(parameter.numel() for parameter in module.parameters())


def multiply_adds(module):
    """Of products with weights and convolutions, as torch counts them; the rest by hand: a scan's
    three for each step, channel and state (two of the recurrence, one of the output), and
    attention's two for each pair of tokens and feature."""
    visual, text = (x[:1].detach() for x in streams())
    with FlopCounterMode(display=False) as counter:
        module(visual, text)
    total = counter.get_total_flops() / 2
    for layer in module.modules():
        if isinstance(layer, CrossMambaBlock | fusions.MambaLayer):
            total += 3 * 2 * QUERIES * layer.d_inner * layer.d_state
        elif isinstance(layer, fusions.EncoderLayer):
            tokens = 2 * QUERIES if layer.interleaved else QUERIES + WORDS
            total += 2 * tokens**2 * WIDTH
    return total


def test_the_two_by_two_are_of_equal_size():
    arms = {arm.name: build(arm) for arm in study.STUDY.arms}
    ours = arms[study.OURS]
    for name in ("scan-concatenated", "attention-interleaved", "attention-concatenated"):
        assert parameters(arms[name]) == pytest.approx(parameters(ours), rel=0.002), name
    for name in ("products", "sums", "gated"):
        assert parameters(arms[name]) == parameters(ours)
    for name in ("attention-interleaved-cost", "attention-concatenated"):
        assert multiply_adds(arms[name]) == pytest.approx(multiply_adds(ours), rel=0.03), name
    assert multiply_adds(arms["attention-interleaved"]) < 0.9 * multiply_adds(ours)
    assert parameters(arms["none"]) == 0
    assert parameters(arms["co-attention"]) == pytest.approx(4.4 * parameters(ours), rel=0.01)


@pytest.mark.parametrize("name", CONTROLS)
def test_padding_is_never_read_and_samples_are_apart(name):
    fusion = build_fusion(CMIMTLConfig(**PRESETS["tiny"].config, fusion=name))
    visual, text = streams()
    lengths = torch.tensor([WORDS, 5])
    out_v, out_t = fusion(visual, text, None, lengths)
    assert out_v.shape == visual.shape and out_t.shape == text.shape
    (out_v.sum() + out_t[0].sum() + out_t[1, :5].sum()).backward()
    assert text.grad[1, 5:].abs().max() == 0
    spoilt = text.detach().clone()
    spoilt[1, 5:] = float("nan")
    again_v, again_t = fusion(visual, spoilt, None, lengths)
    torch.testing.assert_close(again_v, out_v)
    torch.testing.assert_close(again_t[1, :5], out_t[1, :5])
    # A sample alone, without padding, is what it is in the batch.
    alone_v, alone_t = fusion(visual[1:], text[1:, :5])
    torch.testing.assert_close(alone_v[0], out_v[1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(alone_t[0], out_t[1, :5], rtol=1e-4, atol=1e-5)


def test_who_hears_whom():
    """Whether a change of one stream reaches the other stream's output at all."""
    heard = {}
    for name in ("scan-concatenated", "attention-concatenated", "attention-interleaved", "none"):
        fusion = build_fusion(CMIMTLConfig(**PRESETS["tiny"].config, fusion=name)).eval()
        visual, text = streams()
        out_v, out_t = fusion(visual, text)
        (of_text,) = torch.autograd.grad(out_v.sum(), text, retain_graph=True, allow_unused=True)
        (of_visual,) = torch.autograd.grad(out_t.sum(), visual, allow_unused=True)
        heard[name] = tuple(
            gradient is not None and bool((gradient != 0).any())
            for gradient in (of_text, of_visual)
        )
    assert heard == {
        # The scan goes forward: what comes first hears nothing of what comes later.
        "scan-concatenated": (False, True),
        "attention-concatenated": (True, True),
        "attention-interleaved": (True, True),
        "none": (False, False),
    }


def test_products_and_sums_are_what_they_are_called():
    """A text stream whose convolved values were all one leaves the products at the visual values;
    the two differ in nothing but this operation."""
    config = CMIMTLConfig(**PRESETS["tiny"].config, fusion="none")
    layers = fusions.scan_of_products(config).layers[0], fusions.scan_of_sums(config).layers[0]
    v, t = torch.tensor([2.0, 3.0]), torch.tensor([5.0, 7.0])
    assert layers[0].combine(v, t).tolist() == [10, 21]
    assert layers[1].combine(v, t).tolist() == [7, 10]
    layers[1].load_state_dict(layers[0].state_dict())
    outputs = [layer(*streams(), None) for layer in layers]
    assert not torch.allclose(outputs[0][0], outputs[1][0])


def test_visual_lengths_are_refused():
    fusion = build_fusion(CMIMTLConfig(**PRESETS["tiny"].config, fusion="none"))
    with pytest.raises(ValueError, match=r"visual_lengths must be left out .*, got \(2,\)"):
        fusion(*streams(), torch.tensor([8, 8]))


def test_a_model_starts_with_the_mamba_layer_s_own_values(make_model):
    """The model initialises all its linear layers, and then lets these initialise themselves."""
    layer = make_model("scan-concatenated").fusion.layers[0]
    states = torch.arange(1.0, 17).log()
    torch.testing.assert_close(layer.A_log, states.expand(192, 16))
    steps = torch.nn.functional.softplus(layer.dt_proj.bias)
    assert 0.99e-3 <= steps.min() < 5e-3 and 0.03 < steps.max() <= 0.101
    assert layer.dt_proj.weight.abs().max() <= 6**-0.5
    assert layer.dt_proj.weight.std().item() == pytest.approx(6**-0.5 / 3**0.5, rel=0.1)


@pytest.mark.parametrize("fusion", ["scan-concatenated", "scan-of-products"])
@pytest.mark.parametrize("name", ["conv1d", "dt_proj"])
def test_a_hook_on_a_module_of_the_mamba_layer_counts(fusion, name):
    """A module whose output a hook doubles is one of twice its weights."""
    layers = [
        build_fusion(CMIMTLConfig(**PRESETS["tiny"].config, fusion=fusion)).layers[0]
        for _ in range(2)
    ]
    layers[1].load_state_dict(layers[0].state_dict())
    getattr(layers[0], name).register_forward_hook(lambda module, args, out: 2 * out)
    with torch.no_grad():
        for parameter in getattr(layers[1], name).parameters():
            parameter.mul_(2)
    lengths = torch.tensor([WORDS, 5])
    for a, b in zip(*(layer(*streams(), lengths) for layer in layers), strict=True):
        torch.testing.assert_close(a, b)
