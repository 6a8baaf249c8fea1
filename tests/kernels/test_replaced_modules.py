"""What replaces a sub-module of a block, or hooks into its call, has the effect it has anywhere.

Each is compared, in float64, with a block of the weights that it amounts to.
"""

import copy
import warnings

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.modules.module import register_module_forward_hook
from torch.nn.utils import parametrize, prune

from cmimtl_kernels import CrossMambaBlock, submodules, testing

LINEARS = ("in_proj", "x_proj", "dt_proj", "out_proj")
READ = ("conv1d", "conv1d_b", "dt_proj", "dt_proj_b")  # whose weights go to the kernels
kinds = pytest.mark.parametrize("interleave", ["product-sum", "gated"])
read = pytest.mark.parametrize("name", READ)


def make_block(interleave="product-sum", **options):
    torch.manual_seed(0)
    options = dict(d_state=4, interleave=interleave, bidirectional=True) | options
    return CrossMambaBlock(16, **options).double()


def results(function, **gradients_of):
    """The outputs for padded streams, and gradients of the streams and of these tensors."""
    generator = torch.Generator().manual_seed(1)
    visual, text = (
        torch.randn(2, n, 16, dtype=torch.float64, generator=generator).requires_grad_()
        for n in (7, 5)
    )
    outs = function(visual, text, torch.tensor([7, 4]), torch.tensor([2, 5]))
    names = ["out_v", "out_t", "dvisual", "dtext", *gradients_of]
    wanted = [visual, text, *gradients_of.values()]
    grads = torch.autograd.grad(outs[0].square().sum() + (3 * outs[1]).square().sum(), wanted)
    return dict(zip(names, [x.detach() for x in outs] + list(grads), strict=True))


def check_equal(actual, expected, tolerance=1e-12):
    for name, x in expected.items():
        assert testing.relative_l2(actual[name], x) < tolerance, name


def scaled(block, name, factor, bias=True):
    """A copy of the block in which a module's weight, and its bias, are so many times as large."""
    block = copy.deepcopy(block)
    with torch.no_grad():
        getattr(block, name).weight.mul_(factor)
        if bias:
            getattr(block, name).bias.mul_(factor)
    return block


def test_plain_modules_are_read_and_not_called(monkeypatch):
    block, calls = make_block(recompute=False), []
    fused = submodules.causal_conv1d
    monkeypatch.setattr(
        submodules, "causal_conv1d", lambda *args, **kw: calls.append(1) or fused(*args, **kw)
    )
    monkeypatch.setattr(nn.Conv1d, "forward", None)
    results(block)
    assert len(calls) == 4  # two streams, two directions


@kinds
@pytest.mark.parametrize("target", [*LINEARS, *(n + "_b" for n in ("x_proj", "dt_proj"))])
def test_lora(interleave, target):
    block = make_block(interleave)
    merged = copy.deepcopy(block)
    config = LoraConfig(r=2, lora_alpha=6, target_modules=[target], init_lora_weights=False)
    adapted = get_peft_model(block, config).double()
    adapter = getattr(adapted.base_model.model, target)
    A, B = adapter.lora_A["default"].weight, adapter.lora_B["default"].weight
    with torch.no_grad():
        getattr(merged, target).weight.add_(6 / 2 * B @ A)
    actual = results(adapted, dA=A, dB=B)
    expected = results(merged, dweight=getattr(merged, target).weight)
    dweight = expected.pop("dweight")
    expected |= {"dA": 6 / 2 * B.T @ dweight, "dB": 6 / 2 * dweight @ A.T}
    check_equal(actual, expected)


def test_an_adapters_dropout_is_the_same_in_the_recomputation():
    block = make_block()
    config = LoraConfig(
        r=2, target_modules=list(LINEARS), lora_dropout=0.5, init_lora_weights=False
    )
    adapted = get_peft_model(block, config).double().train()
    found = {}
    for recompute in (True, False):
        block.recompute = recompute
        torch.manual_seed(5)
        found[recompute] = results(adapted)
    check_equal(found[True], found[False])


@kinds
def test_dynamic_quantisation(interleave):
    block = make_block(interleave, bidirectional=False).float().eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is about to move to another package
        quantised = torch.ao.quantization.quantize_dynamic(
            block, {"dt_proj": torch.ao.quantization.default_dynamic_qconfig}
        )
    rounded = copy.deepcopy(block)
    rounded.dt_proj.weight.data = quantised.dt_proj.weight().dequantize()
    streams = torch.randn(2, 7, 16), torch.randn(2, 5, 16)
    with torch.no_grad():
        for actual, expected, x in zip(
            quantised(*streams), rounded(*streams), streams, strict=True
        ):
            # The inputs of the product are rounded to 8 bits too.
            assert testing.relative_l2(actual - x, expected - x) < 2e-3


@read
@kinds
def test_weights_that_a_hook_computes(interleave, name):
    block = make_block(interleave)
    expected = scaled(block, name, 2.0, bias=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        module = nn.utils.weight_norm(getattr(block, name))
    with torch.no_grad():
        module.weight_g.mul_(2)
    check_equal(results(block), results(expected))


class Twice(nn.Module):
    def forward(self, x):
        return 2 * x


@read
@pytest.mark.parametrize("of", ["weight", "bias"])
def test_parametrisations(name, of):
    block = make_block()
    expected = copy.deepcopy(block)
    with torch.no_grad():
        getattr(getattr(expected, name), of).mul_(2)
    parametrize.register_parametrization(getattr(block, name), of, Twice())
    check_equal(results(block), results(expected))


@read
def test_pruning(name):
    block = make_block()
    expected = copy.deepcopy(block)
    prune.random_unstructured(getattr(block, name), "weight", 0.5)
    pruned = getattr(block, name)
    with torch.no_grad():
        pruned.weight_orig.mul_(2)  # the weight follows when the module is called
        getattr(expected, name).weight.copy_(pruned.weight_orig * pruned.weight_mask)
    check_equal(results(block), results(expected))


def forward_hook(module):
    module.register_forward_hook(lambda module, args, out: 2 * out)


def replaced_forward(module):
    forward = module.forward
    module.forward = lambda x: 2 * forward(x)


def global_hook(module):
    return register_module_forward_hook(
        lambda called, args, out: 2 * out if called is module else out
    )


@read
@kinds
@pytest.mark.parametrize("change", [forward_hook, replaced_forward, global_hook])
def test_what_changes_a_call(interleave, name, change):
    block = make_block(interleave)
    expected = results(scaled(block, name, 2.0))
    handle = change(getattr(block, name))
    try:
        check_equal(results(block), expected)
    finally:
        if handle is not None:
            handle.remove()


@read
def test_hooks_before_a_call(name):
    block = make_block()
    expected = results(scaled(block, name, 2.0, bias=False))
    getattr(block, name).register_forward_pre_hook(lambda module, args: (2 * args[0],))
    check_equal(results(block), expected)


@read
@pytest.mark.parametrize("before", [False, True])
def test_backward_hooks(name, before):
    """A hook sees the gradient of the module's output, here of the module's bias before the sum."""
    block, seen = make_block(recompute=False), []
    module = getattr(block, name)
    bias = module.bias

    def hook(module, *grads):
        seen.append(grads[-1][0])

    if before:
        module.register_full_backward_pre_hook(hook)
    else:
        module.register_full_backward_hook(hook)
    found = results(block, dbias=bias)
    channels = 1 if name.startswith("conv1d") else -1
    summed = sum(grad.movedim(channels, -1).flatten(0, -2).sum(0) for grad in seen)
    assert testing.relative_l2(summed, found["dbias"]) < 1e-12


def test_a_hook_is_called_once_a_call():
    block, calls = make_block(recompute=False), []
    for name in READ:
        getattr(block, name).register_forward_hook(lambda *_, name=name: calls.append(name))
    results(block)
    # Both streams are convolved. Their tokens have one step size each, projected together.
    assert sorted(calls) == ["conv1d"] * 2 + ["conv1d_b"] * 2 + ["dt_proj", "dt_proj_b"]


@pytest.fixture
def mesh(tmp_path):
    distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    yield init_device_mesh("cpu", (1,))
    distributed.destroy_process_group()


@kinds
@pytest.mark.parametrize("recompute", [False, True])
def test_modules_sharded_one_by_one(mesh, interleave, recompute):
    block = make_block(interleave, recompute=recompute)
    plain = copy.deepcopy(block)
    for name in (*READ, "x_proj", "in_proj"):
        fully_shard(getattr(block, name), mesh=mesh)
    fully_shard(block, mesh=mesh)
    streams = torch.randn(2, 7, 16).double(), torch.randn(2, 5, 16).double()
    for model in (block, plain):
        out_v, out_t = model(*streams, torch.tensor([7, 4]))
        (out_v.square().sum() + out_t.square().sum()).backward()
    expected = dict(plain.named_parameters())
    for name, parameter in block.named_parameters():
        assert testing.relative_l2(parameter.grad.full_tensor(), expected[name].grad) < 1e-12, name
