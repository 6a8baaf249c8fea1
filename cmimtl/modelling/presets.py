"""The two presets, in one place: sizes, weights of the losses, training values, and the names of
pretrained weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from safetensors import safe_open
from transformers import (
    AutoTokenizer,
    RobertaModel,
    T5ForConditionalGeneration,
    ViTImageProcessor,
)

from cmimtl.data import AnswerVocabulary
from cmimtl.modelling import loading
from cmimtl.modelling._timm import timm
from cmimtl.modelling.config import CMIMTLConfig
from cmimtl.modelling.model import CMIMTLForVisualQuestionAnswering
from cmimtl.modelling.processor import (
    CMIMTLProcessor,
    train_answer_tokenizer,
    train_question_tokenizer,
)


@dataclass(frozen=True)
class TrainingValues:
    """How a preset is trained: AdamW, linear warm-up and decay.

    Attributes:
        learning_rate: the learning rate of the encoders.
        rate_factors: prefix of parameter names -> factor on the learning rate.
        warmup: share of the steps in which the learning rate rises.
        cpu_threads: number of threads of a training on a CPU; None for as many as torch takes.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    rate_factors: dict[str, float]
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.01
    warmup: float = 0.1
    max_grad_norm: float = 1.0
    augmentation: bool = False
    cpu_threads: int | None = None


@dataclass(frozen=True)
class Preset:
    """Everything that a preset fixes.

    Attributes:
        config: arguments of CMIMTLConfig; the vocabularies' sizes come from the tokenizers.
        max_question_length: largest number of tokens of a question that is read.
        training: how a model of this preset is trained.
        pretrained: part ("vision", "text", "decoder") -> name of its pretrained weights; empty
            where all parts start from random numbers.
    """

    config: dict[str, Any]
    max_question_length: int
    training: TrainingValues
    pretrained: dict[str, str] = field(default_factory=dict)


# Fields of CMIMTLConfig that are dicts or configurations themselves.
_PARTS = ("vision_options", "text_config", "qformer_config", "decoder_config")
# What `changed` takes. The fusion has an argument of its own, and the base class's fields are none
# of a preset's.
CHANGEABLE = (
    "max_question_length",
    *(
        f.name
        for f in fields(CMIMTLConfig)
        if f.name in CMIMTLConfig.__annotations__ and f.name != "fusion"
    ),
)
_TYPES = {f.name: f.type for f in fields(CMIMTLConfig)}


def changed(preset: Preset, changes: Mapping[str, Any]) -> Preset:
    """A preset with other values.

    Args:
        preset: one of PRESETS.
        changes: one of CHANGEABLE -> value; "text_config.num_hidden_layers" is a value of the field
            before the dot.
    Raises:
        ValueError: there is no such field.
    """
    config, length = dict(preset.config), preset.max_question_length
    for name, value in changes.items():
        whole, _, part = name.partition(".")
        if whole not in CHANGEABLE or bool(part) != (whole in _PARTS):
            names = ", ".join(f"{f}.NAME" if f in _PARTS else f for f in CHANGEABLE)
            raise ValueError(f"train: changes must name one of {names}, got {name!r}.")
        if _TYPES.get(name) is float and type(value) is int:
            value = float(value)
        if name == "max_question_length":
            length = value
        else:
            config[whole] = {**config.get(whole, {}), part: value} if part else value
    return replace(preset, config=config, max_question_length=length)


HEADS = ("contrast_visual", "contrast_text", "classifier", "decoder_projection")
FUSED = ("visual_projection", "text_projection", "fusion", "qformer")

PRESETS: dict[str, Preset] = {
    # The paper: ViT-B/16 at 384, RoBERTa-base, a 12-layer Q-Former with 32 queries, two Cross-Mamba
    # layers, T5-base. Training values are those of the authors' released code.
    "base": Preset(
        config={
            "vision_model": "vit_base_patch16_384",
            "image_size": 384,
            "patch_size": 16,
            "text_config": {"max_position_embeddings": 514, "type_vocab_size": 1},
            "qformer_config": {"cross_attention_frequency": 2, "layer_norm_eps": 1e-12},
            "decoder_config": {
                "d_model": 768,
                "d_kv": 64,
                "d_ff": 3072,
                "num_decoder_layers": 12,
                "num_heads": 12,
            },
            "num_queries": 32,
            "d_model": 768,
            "fusion_layers": 2,
        },
        max_question_length=32,
        training=TrainingValues(
            epochs=50,
            batch_size=64,
            learning_rate=5e-6,
            rate_factors={**dict.fromkeys(HEADS, 50.0), **dict.fromkeys(FUSED, 5.0)},
            augmentation=True,
        ),
        pretrained={
            "vision": "vit_base_patch16_384",
            "text": "FacebookAI/roberta-base",
            "decoder": "google-t5/t5-base",
        },
    ),
    # The preset for a laptop's CPU, which starts from scratch. It is smaller than the paper's
    # model, and differs from it in what a model without pretrained parts needs to learn: weights
    # are larger at the start, the decoder also attends to the image, and its loss weighs as much as
    # the classifier's.
    "tiny": Preset(
        config={
            "vision_model": "vit_tiny_patch16_224",
            "vision_options": {"embed_dim": 96, "depth": 2, "num_heads": 4, "mlp_ratio": 2.0},
            "image_size": 64,
            "patch_size": 16,
            "text_config": {
                "hidden_size": 96,
                "num_hidden_layers": 1,
                "num_attention_heads": 4,
                "intermediate_size": 192,
                "max_position_embeddings": 66,
                "type_vocab_size": 1,
                "hidden_dropout_prob": 0.0,
                "attention_probs_dropout_prob": 0.0,
            },
            "qformer_config": {
                "hidden_size": 96,
                "num_hidden_layers": 1,
                "num_attention_heads": 4,
                "intermediate_size": 192,
                "cross_attention_frequency": 1,
                "max_position_embeddings": 64,
                "hidden_dropout_prob": 0.0,
                "attention_probs_dropout_prob": 0.0,
            },
            "decoder_config": {
                "d_model": 96,
                "d_kv": 24,
                "d_ff": 192,
                "num_decoder_layers": 2,
                "num_heads": 4,
                "dropout_rate": 0.0,
            },
            "num_queries": 8,
            "d_model": 96,
            "fusion_layers": 1,
            "fusion_heads": 4,
            "fusion_dropout": 0.0,
            "fusion_recompute": False,
            "decoder_reads_image": True,
            "contrastive_dim": 64,
            "generation_weight": 1.0,
            "learns_from_scratch": True,
        },
        max_question_length=32,
        training=TrainingValues(
            epochs=4,
            batch_size=64,  # of 32, two fifths of a step are the same for any number of samples
            learning_rate=1e-3,
            rate_factors={},
            warmup=0.05,
            cpu_threads=1,  # two are no faster at these sizes, and wait for each other if disturbed
        ),
    ),
}


def build_processor(
    preset: Preset,
    questions: Iterable[str],
    answers: Iterable[str],
    *,
    weights: Path | None = None,
) -> CMIMTLProcessor:
    """Build the processor of a preset; tokenizers are trained where it names no pretrained ones.

    Args:
        preset: one of PRESETS.
        questions, answers: texts of the training split, for tokenizers trained from scratch.
        weights: folder with one folder per part of ``preset.pretrained``; None for the hub.
    Raises:
        OSError: a pretrained tokenizer cannot be had; the message names it.
    """
    size = preset.config["image_size"]
    image_processor = ViTImageProcessor(
        size={"height": size, "width": size}, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    if "text" in preset.pretrained:
        tokenizer = _pretrained(AutoTokenizer, preset, "text", weights)
    else:
        tokenizer = train_question_tokenizer(questions)
    if "decoder" in preset.pretrained:
        answer_tokenizer = _pretrained(AutoTokenizer, preset, "decoder", weights)
    else:
        answer_tokenizer = train_answer_tokenizer(answers)
    return CMIMTLProcessor(
        image_processor, tokenizer, answer_tokenizer, max_question_length=preset.max_question_length
    )


def build_config(
    preset: Preset, vocabulary: AnswerVocabulary, processor: CMIMTLProcessor, *, fusion: str
) -> CMIMTLConfig:
    """Build the configuration of a preset, for a vocabulary and the processor's tokenizers.

    Raises:
        ValueError: a value of the preset does not fit its field.
    """
    words, answers = processor.tokenizer, processor.answer_tokenizer
    text = {
        "vocab_size": len(words),
        "pad_token_id": words.pad_token_id,
        "bos_token_id": words.bos_token_id,
        "eos_token_id": words.eos_token_id,
    }
    decoder = {
        "vocab_size": len(answers),
        "pad_token_id": answers.pad_token_id,
        "eos_token_id": answers.eos_token_id,
        "decoder_start_token_id": answers.pad_token_id,
    }
    config = dict(preset.config)
    try:
        return CMIMTLConfig(
            **{
                **config,
                "text_config": {**config["text_config"], **text},
                "decoder_config": {**config["decoder_config"], **decoder},
            },
            fusion=fusion,
            id2label=dict(enumerate(vocabulary.answers)),
            label2id={answer: index for index, answer in enumerate(vocabulary.answers)},
        )
    except StrictDataclassError as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise ValueError(
            f"build_config: values must fit the configuration, got this: {reason}"
        ) from error


def build_model(
    preset: Preset,
    *,
    vocabulary: AnswerVocabulary,
    processor: CMIMTLProcessor,
    fusion: str = "cross-mamba",
    weights: Path | None = None,
) -> CMIMTLForVisualQuestionAnswering:
    """Build a model to train: parts that the preset names are pretrained, the rest is initialised.

    Args:
        preset: one of PRESETS.
        vocabulary: the answer classes.
        processor: the processor whose tokens the model will read.
        fusion: "cross-mamba", "cross-mamba-gated" or "transformer".
        weights: folder with one folder per part of ``preset.pretrained``, as ``save_pretrained``
            writes them ("vision": a model.safetensors of timm); None for the hub.
    Raises:
        OSError: pretrained weights cannot be had; the message names them.
    """
    model = CMIMTLForVisualQuestionAnswering(
        build_config(preset, vocabulary, processor, fusion=fusion)
    )
    if "vision" in preset.pretrained:
        source = _load("vision", preset, lambda: _vision_weights(preset, weights))
        _load("vision", preset, lambda: model.vision.vit.load_state_dict(source))
    if "text" in preset.pretrained:
        text = _pretrained(RobertaModel, preset, "text", weights, add_pooling_layer=False)
        _load("text", preset, lambda: model.text.load_state_dict(text.state_dict()))
    if "decoder" in preset.pretrained:
        decoder = _pretrained(T5ForConditionalGeneration, preset, "decoder", weights).state_dict()
        kept = {k: v for k, v in decoder.items() if not k.startswith("encoder.")}
        _load("decoder", preset, lambda: model.decoder.load_state_dict(kept))
    return model


def _vision_weights(preset: Preset, weights: Path | None) -> dict:
    name, config = preset.pretrained["vision"], preset.config
    local: dict[str, Any] = (
        {} if weights is None else {"pretrained_cfg_overlay": {"file": _file(weights)}}
    )
    found = timm.create_model(
        name,
        pretrained=True,
        num_classes=0,
        img_size=config["image_size"],
        **config.get("vision_options", {}),
        **local,
    ).state_dict()
    if weights is not None:  # timm draws at random what a file lacks
        with safe_open(_file(weights), "pt") as file:
            if missing := set(found) - set(file.keys()):
                raise ValueError(f"{_file(weights)} lacks {min(missing)} ({len(missing)} in all)")
    loading.check_finite(found, name if weights is None else _file(weights))
    return found


def _file(weights: Path) -> str:
    path = weights / "vision" / "model.safetensors"
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    return str(path)


def _pretrained(kind, preset: Preset, part: str, weights: Path | None, **options):
    """A pretrained part, of which a folder fetches nothing, and no code is ever run."""

    def load():
        name = preset.pretrained[part]
        if weights is not None:
            name = str(weights / part)
            loading.check_folder(weights / part)
        if kind is AutoTokenizer:
            return kind.from_pretrained(name, trust_remote_code=False, **options)
        model, info = kind.from_pretrained(
            name, trust_remote_code=False, output_loading_info=True, **options
        )
        if missing := set(info["missing_keys"]):
            raise ValueError(f"{name} lacks {min(missing)} ({len(missing)} in all)")
        loading.check_finite(model.state_dict(), name)
        return model

    return _load(part, preset, load)


def _load(part: str, preset: Preset, call):
    """Return call(); where that fails, raise an error that names the weights it could not get."""
    try:
        return call()
    except Exception as error:  # of damaged files, libraries raise nearly everything
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise OSError(
            f"build_model: the pretrained {part} {preset.pretrained[part]!r} must be on the hub or"
            f" in the folder of weights, got: {reason}"
        ) from error
