"""What is checked of a folder with a model and its processor, which somebody else may have made.

transformers takes nearly everything: what a file lacks is drawn at random with a warning, a
configuration may name code, another model or a kernel of the hub, and weights that are no numbers
answer all the same. Here a folder holds one whole model of this package, or is refused by a
ValueError that names the file.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast, ViTImageProcessor

from cmimtl.files import leads_out, read_json, reading

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
PROCESSOR, PREPROCESSOR = "processor_config.json", "preprocessor_config.json"
TOKENIZER, TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"

# Keys, or parts of keys, by which transformers runs code, fetches something, or takes other files
# than the folder's own.
_ACTING = (
    "auto_map", "attn_implementation", "experts_implementation", "quantization_config",
    "transformers_weights", "fusion_config", "kernel_config", "custom_generate", "audio_tokenizer",
    "distributed_config",
)  # fmt: skip
# More layers would take for ever to build before anything of them can be checked.
_COUNTS, _MOST = ("layers", "depth"), 1000
_FLOATS = ("F64", "F32", "F16", "BF16")

_LARGEST = 4096  # pixels of a side, tokens of a question

_OPERATION = "from_pretrained"
_OWN_CONFIG = "config.json must be that of a model of this package"
_OWN_WEIGHTS = "weights must be those of the model"


def check_options(options: Mapping[str, Any]) -> None:
    """Refuse what would have transformers run the code of a folder.

    Raises:
        ValueError: trust_remote_code is set.
    """
    if options.get("trust_remote_code"):
        raise ValueError(
            f"{_OPERATION}: trust_remote_code must be left out, because no code that comes with a"
            f" model is ever run, got {options['trust_remote_code']}."
        )


def local_folder(source: object, subfolder: str = "") -> Path | None:
    """The folder that is meant, or None where source names a model of the hub."""
    if not isinstance(source, (str, os.PathLike)) or not os.path.isdir(source):
        return None
    return Path(source) / subfolder


def check_folder(folder: Path) -> None:
    """Make sure that nothing in a folder makes transformers run or fetch anything.

    Raises:
        ValueError: something does.
    """
    for path in sorted(folder.iterdir()):
        if path.name == "adapter_config.json" or path.name.startswith("shard-"):
            raise ValueError(
                f"{_OPERATION}: a folder must hold one whole model in {WEIGHTS}, got {path}."
            )
        if path.name in (CONFIG, PROCESSOR, PREPROCESSOR, TOKENIZER_CONFIG):
            read_settings(path)


def read_settings(path: Path) -> dict[str, Any]:
    """The content of a folder's JSON file.

    Raises:
        ValueError: it is none, or has a setting that makes transformers run or fetch something, or
            that nothing could be built of.
    """
    requirement = f"{path.name} must hold settings"
    if leads_out(path.parent, path):
        raise ValueError(f"{_OPERATION}: {requirement}, got {path}, a link to {path.resolve()}.")
    content = read_json(_OPERATION, requirement, path)
    for key, value in _pairs(content):
        if any(part in key for part in _ACTING) and value is not None:
            raise ValueError(
                f"{_OPERATION}: {path.name} must not name code, kernels or other files, got {path}"
                f" with {key!r}; delete this setting where you trust the model."
            )
        if key.endswith(_COUNTS) and isinstance(value, int) and value > _MOST:
            raise ValueError(
                f"{_OPERATION}: {path.name} must have at most {_MOST} layers, got {path} with"
                f" {key!r} {value}."
            )
    return content


def _pairs(content: object) -> Iterable[tuple[str, object]]:
    """Every key and value at any depth."""
    waiting = [content]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            yield from value.items()
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value


def read_config(kind, folder: Path, changes: dict[str, Any]):
    """The configuration in a folder.

    Args:
        kind: its class.
        changes: arguments of `from_pretrained`; those that the configuration knows go into it.
    Returns:
        the configuration and the other arguments.
    Raises:
        ValueError: it is that of another model, or no model can be built of it.
    """
    path = folder / CONFIG
    with reading(_OPERATION, _OWN_CONFIG, path):
        content = read_settings(path)
        if content.get("model_type") != kind.model_type:
            raise ValueError(f"its model_type is {content.get('model_type')!r}")
        return kind.from_dict(content, return_unused_kwargs=True, **changes)


def check_labels(config, path: Path) -> None:
    """Make sure that a configuration names its answer classes from 0 on, each by another text.

    Raises:
        ValueError: it does not.
    """
    labels = config.id2label
    texts = list(labels.values()) if isinstance(labels, dict) else []
    whole = bool(texts) and set(labels) == set(range(len(texts)))
    if not whole or not all(isinstance(text, str) for text in texts) or len({*texts}) < len(texts):
        raise ValueError(
            f"{_OPERATION}: id2label must have a text of its own for each class from 0 on, got"
            f" {path} with {str(labels)[:100]}."
        )


def check_weights(kind, config, folder: Path, *, resized: bool = False) -> None:
    """Hold the headers of a folder's weights against the model that is to be built.

    The model is built without memory for its weights. So what is allocated later is no more than
    what the files hold.

    Args:
        kind, config: the model's class and its configuration.
        resized: whether weights may have other shapes, because the caller asked for that.
    Raises:
        ValueError: a file is damaged, or a weight is missing, unknown, or of another shape or kind;
            the message names file and weight.
    """
    with reading(_OPERATION, _OWN_CONFIG, folder / CONFIG), torch.device("meta"):
        model: nn.Module = kind(config)
        expected: dict[str, Tensor] = model.state_dict()
        # Of weights that are one, a file has any one.
        same: dict[str, str] = dict(model.all_tied_weights_keys)  # type: ignore[arg-type]
    found: set[str] = set()
    files = weight_files(folder)
    for path in files:
        with reading(_OPERATION, _OWN_WEIGHTS, path), safe_open(path, "pt") as file:
            for name in file.keys():
                part = file.get_slice(name)
                shape, dtype = tuple(part.get_shape()), part.get_dtype()
                if name not in expected:
                    raise _wrong(path, f"with {name}, which the model has not")
                if shape != tuple(expected[name].shape) and not resized:
                    raise _wrong(path, f"with {name} of shape {shape}", expected[name])
                if expected[name].is_floating_point() and dtype not in _FLOATS:
                    raise _wrong(path, f"with {name} of {dtype}, which is none of floats")
                found.add(same.get(name, name))
    if missing := {same.get(name, name) for name in expected} - found:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise _wrong(files[0], f"without {min(missing)}{more}")


def _wrong(path: Path, got: str, expected: Tensor | None = None) -> ValueError:
    needed = "" if expected is None else f"; the model's has {tuple(expected.shape)}"
    return ValueError(f"{_OPERATION}: {_OWN_WEIGHTS}, got {path} {got}{needed}.")


def weight_files(folder: Path) -> list[Path]:
    """The files with a model's weights: one, or those that an index names.

    Raises:
        ValueError: there are none, or the index names files elsewhere.
    """
    if (folder / WEIGHTS).is_file():
        paths = [folder / WEIGHTS]
    elif (folder / INDEX).is_file():
        index, requirement = folder / INDEX, "an index must name the files with the weights"
        with reading(_OPERATION, requirement, index):
            names = read_json(_OPERATION, requirement, index)["weight_map"].values()
            paths = sorted({folder / name for name in names})
            if not paths:
                raise ValueError("it names none")
    else:
        raise ValueError(f"{_OPERATION}: a model's folder must hold {WEIGHTS}, got {folder}.")
    for path in paths:
        if leads_out(folder, path):
            raise ValueError(
                f"{_OPERATION}: weights must lie in the model's folder, got {path}, which leads to"
                f" {path.resolve()}."
            )
    return paths


def check_finite(weights: Mapping[str, Tensor], source: object) -> None:
    """Make sure that weights are numbers.

    Raises:
        ValueError: one has NaN or infinity; the message names it.
    """
    for name, value in weights.items():
        if not value.is_meta and value.is_floating_point() and not value.isfinite().all():
            wrong = value[~value.isfinite()][0].item()
            raise ValueError(
                f"{_OPERATION}: weights must be finite in {value.dtype}, got {source} with {wrong}"
                f" in {name}."
            )


def check_nothing_missing(info: Mapping[str, Any], source: object) -> None:
    """Make sure that a model of the hub had every weight, and no other.

    Args:
        info: what transformers tells of the loading.
    Raises:
        ValueError: it had not.
    """
    for words, names in (
        ("without", info["missing_keys"]),
        ("with, unknown to the model,", info["unexpected_keys"]),
    ):
        if names:
            raise ValueError(
                f"{_OPERATION}: {_OWN_WEIGHTS}, got {source} {words} {min(names)}"
                f" ({len(names)} in all)."
            )


def read_processor(kind, folder: Path):
    """The processor in a folder, which is tried before it is given.

    Args:
        kind: its class.
    Raises:
        ValueError: a file is missing or damaged, or the processor cannot be used.
    """
    check_folder(folder)
    path, requirement = folder / PROCESSOR, "a processor's settings must be whole"
    with reading(_OPERATION, requirement, path):
        settings = read_settings(path)
        image = settings.get("image_processor")
        if image is None:  # as older versions saved it
            path = folder / PREPROCESSOR
            image = read_settings(path)
    with reading(_OPERATION, requirement, path):
        longest = settings.get("max_question_length", 32)
        sides = [image["size"][side] for side in ("height", "width")]
        for name, value in (("max_question_length", longest), ("size", max(sides))):
            if type(value) is not int or not 3 <= min(value, *sides) <= value <= _LARGEST:
                raise ValueError(f"{name} must be from 3 to {_LARGEST}, got {value!r}")
        image_processor = ViTImageProcessor.from_dict(image)
        sample = np.zeros((*sides, 3), np.uint8)
        if not image_processor(sample, return_tensors="pt")["pixel_values"].isfinite().all():
            raise ValueError("black pictures do not become finite numbers")
    tokenizers = (read_tokenizer(folder), read_tokenizer(folder / "answer_tokenizer"))
    return kind(image_processor, *tokenizers, max_question_length=longest)


def read_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """The tokenizer in a folder, which is tried before it is given.

    Raises:
        ValueError: a file is missing or damaged, or the tokenizer cannot be used.
    """
    path, requirement = folder / TOKENIZER, "a tokenizer's files must be whole"
    with reading(_OPERATION, requirement, path):
        if leads_out(folder, path):
            raise ValueError(f"it leads to {path.resolve()}")
        read_json(_OPERATION, requirement, path)
        if (folder / TOKENIZER_CONFIG).is_file():
            read_settings(folder / TOKENIZER_CONFIG)
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
        tokens = tokenizer(["a", "is it so?"], padding=True, return_tensors="pt")
        tokenizer.batch_decode(tokens["input_ids"], skip_special_tokens=True)
        return tokenizer
