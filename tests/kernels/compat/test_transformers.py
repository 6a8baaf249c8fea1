"""transformers' Mamba models on the kernels against their own plain PyTorch path; undoing it."""

import copy
import re
import threading

import pytest
import torch

transformers = pytest.importorskip("transformers")

from cmimtl_kernels.compat import transformers as compat  # noqa: E402
from cmimtl_kernels.compat.transformers import use_kernels  # noqa: E402
from cmimtl_kernels.testing import relative_l2  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:.*slow PyTorch reference:RuntimeWarning")

SIZES = dict(vocab_size=31, hidden_size=16, num_hidden_layers=2)
STATE = dict(state_size=4, conv_kernel=4, time_step_rank=3)
ATTENTION = dict(
    num_attention_heads=2, num_key_value_heads=2, intermediate_size=24, mamba_d_state=4,
    mamba_d_conv=4, mamba_dt_rank=3, pad_token_id=0,
)  # fmt: skip
HEADS = dict(
    n_mamba_heads=2, num_hidden_layers=3, layers_block_type=["mamba", "hybrid", "hybrid"]
)  # fmt: skip
MODELS = {
    "mamba": lambda **o: transformers.MambaForCausalLM(
        transformers.MambaConfig(**SIZES | STATE | o)
    ),
    "falcon_mamba": lambda **o: transformers.FalconMambaForCausalLM(
        transformers.FalconMambaConfig(**SIZES | STATE | o)
    ),
    "jamba": lambda **o: transformers.JambaForCausalLM(
        transformers.JambaConfig(
            **SIZES | ATTENTION | dict(num_experts=2, attn_layer_period=2, attn_layer_offset=1) | o
        )
    ),
    "zamba": lambda **o: transformers.ZambaForCausalLM(
        transformers.ZambaConfig(
            **SIZES | ATTENTION | HEADS | o
        )
    ),
}  # fmt: skip
every_model = pytest.mark.parametrize("architecture", MODELS)


def build(architecture, **options):
    torch.manual_seed(0)
    model = MODELS[architecture](**options).eval()
    with torch.no_grad():  # at their initial values the scan hardly changes the logits
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1 and "A_log" not in name and "embed" not in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def tokens(batch=2, length=13):
    generator = torch.Generator().manual_seed(1)
    return torch.randint(3, 31, (batch, length), generator=generator)


@pytest.fixture
def calls(monkeypatch):
    """How often each of the library's functions ran."""
    counts = {}

    def counted(name, function):
        def wrapper(*args, **kwargs):
            counts[name] = counts.get(name, 0) + 1
            return function(*args, **kwargs)

        return wrapper

    functions = {name: counted(name, f) for name, f in compat._FUNCTIONS.items()}
    monkeypatch.setattr(compat, "_FUNCTIONS", functions)
    return counts


@every_model
def test_logits(architecture, calls):
    model, ids = build(architecture), tokens()
    with torch.no_grad():
        expected = model(ids).logits
        assert not calls
        with use_kernels():
            logits = model(ids).logits
    assert calls["mamba_selective_scan"] > 0 and calls["causal_conv1d_fn"] > 0
    assert relative_l2(logits, expected) < 1e-5
    with torch.no_grad():
        shuffled = model(ids.flip(1)).logits
    assert relative_l2(shuffled, expected) > 1e-2  # the comparison can tell outputs apart


@every_model
@pytest.mark.parametrize("training", [False, True])
def test_gradients(architecture, training):
    model, ids = build(architecture, use_cache=False), tokens()
    model.train(training)
    other = copy.deepcopy(model)
    torch.manual_seed(2)
    model(ids, labels=ids).loss.backward()
    with use_kernels():
        torch.manual_seed(2)
        other(ids, labels=ids).loss.backward()
    for (name, p), q in zip(model.named_parameters(), other.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None), name
        if p.grad is not None:
            assert relative_l2(q.grad, p.grad) < 2e-4, name


@every_model
def test_greedy_generation_with_a_cache(architecture, calls):
    model, ids = build(architecture), tokens()
    options = dict(max_new_tokens=12, do_sample=False, use_cache=True, eos_token_id=None)
    expected = model.generate(ids, **options)
    with use_kernels():
        generated = model.generate(ids, **options)
    assert calls["mamba_selective_state_update"] > 0 and calls["causal_conv1d_update"] > 0
    assert torch.equal(generated, expected)
    assert generated.shape == (2, 25)


@every_model
def test_generation_equals_that_without_a_cache(architecture):
    model, ids = build(architecture), tokens(1, 5)
    options = dict(max_new_tokens=6, do_sample=False, eos_token_id=None)
    with use_kernels():
        cached = model.generate(ids, use_cache=True, **options)
        assert torch.equal(cached, model.generate(ids, use_cache=False, **options))


@pytest.mark.parametrize("options", [dict(num_beams=3), dict(do_sample=True)], ids=str)
def test_other_kinds_of_generation(options):
    model, ids = build("mamba"), tokens()
    options = options | dict(max_new_tokens=8, eos_token_id=None)
    torch.manual_seed(0)
    expected = model.generate(ids, **options)
    with use_kernels():
        torch.manual_seed(0)
        assert torch.equal(model.generate(ids, **options), expected)


@every_model
def test_padding(architecture):
    """Left padding under an attention mask, as generation has it."""
    model, ids = build(architecture), tokens()
    mask = torch.ones_like(ids)
    mask[0, :5] = 0
    with torch.no_grad():
        expected = model(ids, attention_mask=mask).logits
        with use_kernels():
            logits = model(ids, attention_mask=mask).logits
    keep = mask.bool()
    assert relative_l2(logits[keep], expected[keep]) < 1e-5


@pytest.mark.parametrize("architecture", ["mamba", "falcon_mamba", "jamba"])
def test_bfloat16_is_nearer_to_float32_than_the_plain_path(architecture):
    model, ids = build(architecture), tokens()
    with torch.no_grad():
        exact = model(ids).logits
        model = model.bfloat16()
        plain = model(ids).logits
        with use_kernels():
            logits = model(ids).logits
    assert logits.dtype == plain.dtype
    assert relative_l2(logits, exact) < max(1.2 * relative_l2(plain, exact), 2e-2)


def test_autocast():
    model, ids = build("mamba").train(), tokens()
    expected = model(ids).logits
    with use_kernels(), torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(ids).logits
        logits.float().square().mean().backward()
    assert relative_l2(logits, expected) < 5e-2
    assert all(p.grad.dtype == torch.float32 for p in model.parameters())


def test_another_activation():
    model, ids = build("mamba", hidden_act="gelu"), tokens()
    options = dict(max_new_tokens=4, do_sample=False, eos_token_id=None)
    expected = model.generate(ids, **options, output_logits=True, return_dict_in_generate=True)
    with use_kernels():
        actual = model.generate(ids, **options, output_logits=True, return_dict_in_generate=True)
    for logits, wanted in zip(actual.logits, expected.logits, strict=True):
        assert relative_l2(logits, wanted) < 1e-5


def test_gradient_checkpointing():
    model, ids = build("mamba", use_cache=False).train(), tokens()
    model(ids, labels=ids).loss.backward()
    expected = {n: p.grad.clone() for n, p in model.named_parameters()}
    model.zero_grad()
    model.activation_checkpointing_enable()
    with use_kernels():
        model(ids, labels=ids).loss.backward()
    for name, parameter in model.named_parameters():
        assert relative_l2(parameter.grad, expected[name]) < 2e-4, name


# Undoing it


def functions():
    """What every modeling file has in its names now."""
    modules = {name: compat._modeling(name) for name in compat.ARCHITECTURES}
    return {(a, n): getattr(m, n) for a, m in modules.items() for n in compat._names(a)}


@pytest.fixture
def originals():
    before = functions()
    yield before
    assert functions() == before


def used() -> set[str]:
    ours = set(compat._FUNCTIONS.values())
    return {a for (a, _), function in functions().items() if function in ours}


def test_block(originals):
    with use_kernels():
        assert used() == set(compat.ARCHITECTURES)
    assert functions() == originals


def test_call(originals):
    use = use_kernels()
    assert used() == set(compat.ARCHITECTURES)
    use.undo()
    assert functions() == originals
    use.undo()  # nothing left to undo
    with use_kernels():
        use.undo()
        assert used() == set(compat.ARCHITECTURES)


def test_one_architecture(originals):
    with use_kernels("jamba"):
        assert used() == {"jamba"}
        with use_kernels("mamba", "jamba"):
            assert used() == {"mamba", "jamba"}
        assert used() == {"jamba"}


def test_nesting_in_any_order(originals):
    first, second, third = use_kernels(), use_kernels(), use_kernels()
    for use in (second, first):
        use.undo()
        assert used() == set(compat.ARCHITECTURES)
    third.undo()
    assert functions() == originals


def test_exception(originals):
    with pytest.raises(ZeroDivisionError), use_kernels():
        1 / 0  # noqa: B018
    assert functions() == originals


def test_threads(originals):
    """Uses of several threads overlap; transformers' functions are back after the last one."""
    start = threading.Barrier(4)
    failures = []

    def run():
        start.wait()
        for _ in range(50):
            with use_kernels("mamba"):
                if used() != {"mamba"}:
                    failures.append(used())

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert functions() == originals


def test_what_somebody_else_put_there_stays(monkeypatch):
    from transformers.models.mamba import modeling_mamba

    monkeypatch.setattr(modeling_mamba, "mamba_selective_scan", modeling_mamba.mamba_selective_scan)
    use, theirs = use_kernels("mamba"), object()
    modeling_mamba.mamba_selective_scan = theirs
    use.undo()
    assert modeling_mamba.mamba_selective_scan is theirs


# Messages


def test_unknown_architecture(originals):
    message = (
        "use_kernels: architectures must be among mamba, falcon_mamba, jamba, zamba, got 'bert'"
    )
    with pytest.raises(ValueError, match="^" + re.escape(message) + "$"):
        use_kernels("mamba", "bert")


def test_another_version_of_transformers(originals, monkeypatch):
    from transformers.models.jamba import modeling_jamba

    scan = modeling_jamba.mamba_selective_scan
    monkeypatch.delattr(modeling_jamba, "mamba_selective_scan")
    message = (
        "use_kernels: transformers.models.jamba.modeling_jamba must have mamba_selective_scan,"
        f" which transformers {transformers.__version__} has not; this was written for"
        " transformers 5.23"
    )
    with pytest.raises(ImportError, match="^" + re.escape(message) + "$"):
        use_kernels()
    monkeypatch.setattr(modeling_jamba, "mamba_selective_scan", scan, raising=False)
    assert not used()  # not one architecture was left changed


def test_packed_sequences_need_seq_idx():
    message = (
        "causal_conv1d_fn: cu_seqlens must be None, got a tensor; give seq_idx to keep packed"
        " sequences apart"
    )
    with pytest.raises(ValueError, match="^" + re.escape(message) + "$"):
        compat._causal_conv1d_fn(torch.zeros(1, 2, 3), torch.zeros(2, 2), cu_seqlens=torch.zeros(2))
