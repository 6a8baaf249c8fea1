"""CMI-MTL: medical visual question answering with Cross-Mamba fusion, on transformers.

The names below are imported when they are first used, so `import cmimtl` costs nothing and works
without the packages of the `models` extra.
"""

from importlib import import_module, metadata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cmimtl.config import CMIMTLConfig
    from cmimtl.model import CMIMTLForVisualQuestionAnswering
    from cmimtl.processor import CMIMTLProcessor

__all__ = ["CMIMTLConfig", "CMIMTLForVisualQuestionAnswering", "CMIMTLProcessor"]

_MODULES = {
    "CMIMTLConfig": "cmimtl.config",
    "CMIMTLForVisualQuestionAnswering": "cmimtl.model",
    "CMIMTLProcessor": "cmimtl.processor",
}


def __getattr__(name: str):
    if name == "__version__":
        return metadata.version("cmimtl")
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(import_module(_MODULES[name]), name)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "cmimtl":
            raise
        raise ModuleNotFoundError(
            f"cmimtl: {error.name} must be installed for {name}, got none;"
            " `pip install 'cmimtl[models]'` installs it",
            name=error.name,
        ) from error


def __dir__() -> list[str]:
    return [*globals(), *__all__, "__version__"]
