"""CMI-MTL: medical visual question answering with Cross-Mamba fusion, on transformers.

The names below are imported when they are first used, so `import cmimtl` costs nothing and works
without the packages of the `models` extra.
"""

from importlib import import_module, metadata
from typing import TYPE_CHECKING

from cmimtl.messages import is_ours, missing

if TYPE_CHECKING:
    from cmimtl.evaluation.answer import QuestionAnswerer
    from cmimtl.modelling.config import CMIMTLConfig
    from cmimtl.modelling.model import CMIMTLForVisualQuestionAnswering
    from cmimtl.modelling.processor import CMIMTLProcessor
    from cmimtl.training.train import train

__all__ = [
    "CMIMTLConfig",
    "CMIMTLForVisualQuestionAnswering",
    "CMIMTLProcessor",
    "QuestionAnswerer",
    "train",
]

_MODULES = {
    "CMIMTLConfig": "cmimtl.modelling.config",
    "CMIMTLForVisualQuestionAnswering": "cmimtl.modelling.model",
    "CMIMTLProcessor": "cmimtl.modelling.processor",
    "QuestionAnswerer": "cmimtl.evaluation.answer",
    "train": "cmimtl.training.train",
}


def __getattr__(name: str):
    if name == "__version__":
        return metadata.version("cmimtl")
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(import_module(_MODULES[name]), name)
    except ImportError as error:
        if is_ours(error):
            raise
        raise type(error)(missing(f"cmimtl.{name}", error), name=error.name) from error


def __dir__() -> list[str]:
    return [*globals(), *__all__, "__version__"]
