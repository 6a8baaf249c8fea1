"""What a folder with a model may hold: one whole model of this package, and nothing that acts."""

import json
import shutil
import socket

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForVisualQuestionAnswering, AutoProcessor, RobertaTokenizer

from cmimtl.evaluation.answer import QuestionAnswerer
from cmimtl.modelling.model import CMIMTLForVisualQuestionAnswering
from cmimtl.modelling.processor import CMIMTLProcessor
from tests.model.commands import run
from tests.model.conftest import QUESTIONS

D = "fusion.layers.0.D"


class Asked(BaseException):
    """A folder led to the network, which no code may swallow."""


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def connect(*_, **__):
        raise Asked

    monkeypatch.setattr(socket, "getaddrinfo", connect)
    monkeypatch.setattr(socket.socket, "connect", connect)


@pytest.fixture(scope="module")
def saved(make_model, processor, tmp_path_factory):
    """A folder with a model and its processor. Not to be changed."""
    folder = tmp_path_factory.mktemp("saved") / "run"
    make_model().save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "run")


def change(path, **values):
    """Change keys of a JSON file; `a__b` is the key b of a."""
    content = json.loads(path.read_text())
    for name, value in values.items():
        *above, last = name.split("__")
        place = content
        for key in above:
            place = place[key]
        place[last] = value
    path.write_text(json.dumps(content))


def with_weight(name, value):
    def damage(folder):
        path = folder / "model.safetensors"
        weights = load_file(path)
        if value is None:
            del weights[name]
        else:
            weights[name] = value(weights[name]) if name in weights else value(torch.ones(2))
        save_file(weights, path, metadata={"format": "pt"})

    return damage


def cut(name, size):
    def damage(folder):
        path = folder / name
        path.write_bytes(path.read_bytes()[:size])

    return damage


def with_setting(name, **values):
    return lambda folder: change(folder / name, **values)


def with_file(name, text):
    return lambda folder: (folder / name).write_text(text)


def linked(name):
    def damage(folder):
        (folder / name).rename(folder.parent / "elsewhere")
        (folder / name).symlink_to(folder.parent / "elsewhere")

    return damage


KERNEL = "kernels-community/flash-attn"
MODEL = {
    "no weight": (with_weight(D, None), f"model.safetensors without {D}."),
    "unknown": (with_weight("more", lambda x: x), "model.safetensors with more, which the model"),
    "nan": (with_weight(D, lambda x: x * torch.nan), f"model.safetensors with nan in {D}."),
    "inf": (with_weight(D, lambda x: x / 0), f"model.safetensors with inf in {D}."),
    "shape": (with_weight(D, lambda x: x[:5]), f"model.safetensors with {D} of shape (5,); the"),
    "dtype": (with_weight(D, lambda x: x.int()), f"model.safetensors with {D} of I32, which"),
    "cut": (cut("model.safetensors", 900_000), "model.safetensors: SafetensorError"),
    "empty": (cut("model.safetensors", 0), "model.safetensors: SafetensorError"),
    "weights elsewhere": (linked("model.safetensors"), "model.safetensors, which leads to"),
    "no JSON": (cut("config.json", 99), "config.json: "),
    "no object": (with_file("config.json", "[]"), "config.json: it holds a list, no dict"),
    "other model": (with_setting("config.json", model_type="bert"), "model_type is 'bert'"),
    "other size": (with_setting("config.json", num_queries=9), "of shape (1, 8, 96); the model's"),
    "endless": (with_setting("config.json", fusion_layers=10**9), "'fusion_layers' 1000000000"),
    "hub": (with_setting("config.json", vision_model="hf-hub:a/b"), "got 'hf-hub:a/b'"),
    "folder": (with_setting("config.json", vision_model="local-dir:/a"), "got 'local-dir:/a'"),
    "pickle": (
        with_setting("config.json", vision_options__checkpoint_path="/a.bin"),
        "vision_options must be those of a Vision Transformer, got checkpoint_path",
    ),
    "code": (with_setting("config.json", auto_map={"AutoModel": "x--y.Z"}), "with 'auto_map'"),
    "kernel": (
        with_setting("config.json", text_config___attn_implementation=KERNEL),
        "with '_attn_implementation'",
    ),
    "quantization": (
        with_setting("config.json", quantization_config={"quant_method": "awq"}),
        "with 'quantization_config'",
    ),
    "other file": (
        with_setting("config.json", transformers_weights="../a.safetensors"),
        "with 'transformers_weights'",
    ),
    "adapter": (
        with_file("adapter_config.json", '{"base_model_name_or_path": "a/b"}'),
        "adapter_config.json",
    ),
    "labels": (with_setting("config.json", id2label={"0": "a", "7": "b"}), "id2label must have"),
    "same labels": (
        with_setting("config.json", id2label={"0": "a", "1": "a", "2": "b"}),
        "id2label must have",
    ),
}
PROCESSOR = {
    "no JSON": (cut("processor_config.json", 40), "processor_config.json: "),
    "image code": (
        with_setting("processor_config.json", image_processor__auto_map={"A": "x--y.Z"}),
        "processor_config.json with 'auto_map'",
    ),
    "tokenizer code": (
        with_setting("tokenizer_config.json", auto_map={"AutoTokenizer": ["x.Y", None]}),
        "tokenizer_config.json with 'auto_map'",
    ),
    "answers' code": (
        with_setting("answer_tokenizer/tokenizer_config.json", auto_map={"A": "x--y.Z"}),
        "answer_tokenizer/tokenizer_config.json with 'auto_map'",
    ),
    "audio": (
        with_setting("processor_config.json", audio_tokenizer={"audio_tokenizer_name_or_path": 1}),
        "processor_config.json with 'audio_tokenizer'",
    ),
    "size": (
        with_setting("processor_config.json", image_processor__size={"height": 10**9, "width": 8}),
        "size must be from 3 to 4096, got 1000000000",
    ),
    "deviation": (
        with_setting("processor_config.json", image_processor__image_std=[0, 1, 1]),
        "processor_config.json: ",
    ),
    "vocabulary": (cut("tokenizer.json", 700), "/tokenizer.json: "),
    "no vocabulary": (lambda f: (f / "tokenizer.json").unlink(), "/tokenizer.json: "),
    "no object": (with_file("answer_tokenizer/tokenizer.json", "{}"), "tokenizer/tokenizer.json: "),
    "panic": (  # of the library in Rust
        with_setting("tokenizer.json", post_processor__special_tokens={}),
        "/tokenizer.json: ",
    ),
    "vocabulary elsewhere": (linked("tokenizer.json"), "/tokenizer.json: it leads to"),
    "length": (
        with_setting("processor_config.json", max_question_length=0),
        "max_question_length must be from 3 to 4096, got 0",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MODEL)
def test_a_model_that_is_refused(folder, capsys, monkeypatch, name):
    damage, words = MODEL[name]
    damage(folder)
    monkeypatch.setattr("builtins.input", lambda *_: "yes")  # to "Do you wish to run the code?"
    for load in (CMIMTLForVisualQuestionAnswering, AutoModelForVisualQuestionAnswering):
        if load is AutoModelForVisualQuestionAnswering and name in ("no JSON", "other model"):
            continue  # it reads the configuration before it asks for this class
        with pytest.raises((ValueError, OSError)) as error:
            load.from_pretrained(folder)
        assert "\n" not in str(error.value) or load is not CMIMTLForVisualQuestionAnswering
    capsys.readouterr()
    assert run("answer", folder, "picture.png", "Is it so?") == 2
    printed = capsys.readouterr()
    assert words in printed.err and str(folder) in printed.err, printed.err
    assert printed.err.count("\n") == 1 and printed.out == ""


@pytest.mark.parametrize("name", PROCESSOR)
def test_a_processor_that_is_refused(folder, capsys, monkeypatch, name):
    damage, words = PROCESSOR[name]
    damage(folder)
    monkeypatch.setattr("builtins.input", lambda *_: "yes")
    with pytest.raises(ValueError, match="from_pretrained: "):
        CMIMTLProcessor.from_pretrained(folder)
    capsys.readouterr()
    assert run("answer", folder, "picture.png", "Is it so?") == 2
    printed = capsys.readouterr()
    assert words in printed.err and str(folder) in printed.err, printed.err
    assert printed.err.count("\n") == 1 and printed.out == ""


@pytest.mark.parametrize("kind", [CMIMTLForVisualQuestionAnswering, CMIMTLProcessor])
def test_no_code_is_trusted(saved, kind):
    with pytest.raises(ValueError, match=r"trust_remote_code must be left out, .* got True"):
        kind.from_pretrained(saved, trust_remote_code=True)


def test_what_is_whole_is_loaded_as_it_is(make_model, processor, saved, tmp_path):
    expected = make_model().state_dict()
    for load in (CMIMTLForVisualQuestionAnswering, AutoModelForVisualQuestionAnswering):
        model, info = load.from_pretrained(saved, output_loading_info=True)
        assert all(torch.equal(value, expected[n]) for n, value in model.state_dict().items())
        assert not info["missing_keys"]
    model.save_pretrained(tmp_path, max_shard_size="1MB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    again = CMIMTLForVisualQuestionAnswering.from_pretrained(tmp_path)
    assert all(torch.equal(value, expected[n]) for n, value in again.state_dict().items())
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(index.read_text().replace("model-00001", "../model-00001"))
    with pytest.raises(ValueError, match="weights must lie in the model's folder"):
        CMIMTLForVisualQuestionAnswering.from_pretrained(tmp_path)


def test_a_configuration_may_be_changed_by_arguments(saved):
    model = CMIMTLForVisualQuestionAnswering.from_pretrained(
        saved, num_labels=7, ignore_mismatched_sizes=True, fusion_dropout=0.5
    )
    assert model.config.num_labels == 7 and model.config.fusion_dropout == 0.5
    assert model.classifier.layers[-1].out_features == 7


def test_tokenizers_of_other_classes(processor, tmp_path):
    """RoBERTa's own class reads its vocabulary; the folder's tokenizer.json has all of it."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *letters, "is", "\u0120it"]
    merges = [("i", "s"), ("\u0120", "i"), ("\u0120i", "t")]
    vocabulary = {word: number for number, word in enumerate([*words, "\u0120i"])}
    tokenizer = RobertaTokenizer(vocab=vocabulary, merges=merges)
    theirs = CMIMTLProcessor(processor.image_processor, tokenizer, processor.answer_tokenizer)
    theirs.save_pretrained(tmp_path)
    for load in (CMIMTLProcessor, AutoProcessor):
        if load is AutoProcessor:
            (tmp_path / "config.json").write_text('{"model_type": "cmi-mtl"}')
        ours = load.from_pretrained(tmp_path)
        expected = theirs(text=["is it so?", "Is the heart enlarged"])
        for name, tensor in ours(text=["is it so?", "Is the heart enlarged"]).items():
            assert torch.equal(tensor, expected[name]), name


def test_a_processor_of_another_model(make_model, processor):
    more = Tokenizer(models.WordLevel({str(n): n for n in range(10**4)}, unk_token="0"))
    other = CMIMTLProcessor(
        processor.image_processor,
        type(processor.tokenizer)(tokenizer_object=more, pad_token="1", unk_token="0"),
        processor.answer_tokenizer,
    )
    with pytest.raises(ValueError, match=r"processor must be that of the model, .* with 10000"):
        QuestionAnswerer(make_model(), other)
    assert QuestionAnswerer(make_model(), processor).processor(text=QUESTIONS)
