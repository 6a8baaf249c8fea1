"""What transformers does to any of its models: checkpointing, the input embedding, empty models."""

import accelerate
import pytest
import torch
from torch import nn
from transformers import Trainer, TrainingArguments

from cmimtl.modelling.config import FUSIONS

# A module inside each part that is checkpointed, called once a forward pass of the layer it is in.
INSIDE = (
    "vision.vit.blocks.0.attn",
    "text.encoder.layer.0.attention.self",
    "qformer.encoder.encoder.layer.0.attention.attention",
    "decoder.decoder.block.0.layer.0.SelfAttention",
)


def step(model, batch, options):
    """The loss, the gradients, and how often each of the modules above was called."""
    if options is not None:
        model.activation_checkpointing_enable(options)
    calls = dict.fromkeys(INSIDE, 0)

    def count(name):
        def hook(*_):
            calls[name] += 1

        return hook

    for name in INSIDE:
        model.get_submodule(name).register_forward_hook(count(name))
    torch.manual_seed(7)  # the dropout's
    loss = model.train()(**batch).loss
    loss.backward()
    return {"loss": loss} | {n: p.grad for n, p in model.named_parameters()}, calls


def check_close(found, expected):
    """To rounding: gradients are added up in another order."""
    assert found.keys() == expected.keys()
    for name, x in expected.items():
        torch.testing.assert_close(found[name], x, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("fusion", ["cross-mamba", "transformer"])
def test_checkpointing_changes_nothing_but_memory(make_model, batch, fusion, reentrant):
    expected, once = step(make_model(fusion), batch, None)
    found, twice = step(make_model(fusion), batch, {"use_reentrant": reentrant})
    check_close(found, expected)
    assert {name: n / once[name] for name, n in twice.items()} == dict.fromkeys(INSIDE, 2)


def test_checkpointing_ends(make_model, batch):
    model = make_model()
    model.activation_checkpointing_enable()
    assert model.is_activation_checkpointing
    model.activation_checkpointing_disable()
    found, once = step(model, batch, None)
    expected, calls = step(make_model(), batch, None)
    assert once == calls
    for name, x in expected.items():
        assert torch.equal(found[name], x), name


def test_in_transformers_trainer(make_model, batch, tmp_path):
    samples = [{name: x[i] for name, x in batch.items()} for i in range(3)]
    weights = []
    for checkpointing in (False, True):
        model = make_model()
        arguments = TrainingArguments(
            tmp_path, per_device_train_batch_size=3, max_steps=2, optim="sgd", learning_rate=0.1,
            activation_checkpointing=checkpointing, report_to=[], save_strategy="no", use_cpu=True,
        )  # fmt: skip
        Trainer(model, arguments, train_dataset=samples).train()
        assert model.is_activation_checkpointing == checkpointing
        weights.append(model.state_dict())
    start = make_model().state_dict()
    assert any(not torch.equal(weights[0][name], x) for name, x in start.items())
    check_close(weights[1], weights[0])


def test_the_input_embedding_is_that_of_the_question(make_model, batch):
    model = make_model().eval()
    embedding = model.get_input_embeddings()
    assert embedding is model.text.embeddings.word_embeddings
    with torch.no_grad():
        expected = model(**batch)
        larger = nn.Embedding(embedding.num_embeddings + 8, embedding.embedding_dim)
        larger.weight[: embedding.num_embeddings] = embedding.weight
        model.set_input_embeddings(larger)
        assert model.get_input_embeddings() is larger
        assert torch.equal(model(**batch).logits, expected.logits)
        larger.weight.zero_()
        assert not torch.equal(model(**batch).logits, expected.logits)


def test_adapters_under_checkpointing(make_model, batch):
    """With all weights frozen, the embedding's outputs carry the gradients into the layers."""
    model = make_model().train().requires_grad_(False)
    model.activation_checkpointing_enable({"use_reentrant": True})
    model.enable_input_require_grads()
    weight = model.text.encoder.layer[0].output.dense.weight.requires_grad_()
    model(**batch).loss.backward()
    assert weight.grad.any()


@pytest.mark.parametrize("fusion", FUSIONS)
def test_a_model_without_memory(make_model, fusion):
    config = make_model(fusion).config
    expected = {name: (x.shape, x.dtype) for name, x in make_model(fusion).named_parameters()}
    model_class = type(make_model(fusion))
    for context in (torch.device("meta"), accelerate.init_empty_weights()):
        with context:
            model = model_class(config)
        model.tie_weights()
        found = {name: (x.shape, x.dtype) for name, x in model.named_parameters()}
        assert found == expected
        assert {x.device for x in model.parameters()} == {torch.device("meta")}
