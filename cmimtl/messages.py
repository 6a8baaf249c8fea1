"""What a command says, in one line, of an error that is not its own."""

from __future__ import annotations

# Top-level module -> extra, of those that the models do not need.
_EXTRAS = {
    "triton": "triton",
    "causal_conv1d": "cuda",
    **dict.fromkeys(("hypothesis", "mambapy", "pytest", "pytest_benchmark", "xdist"), "test"),
}


def missing(operation: str, error: ImportError) -> str:
    """One line on a package that could not be imported.

    Args:
        operation: what needs it; named in the line.
        error: of the import.
    """
    package = (error.name or "a package").partition(".")[0]
    extra = _EXTRAS.get(package, "models")
    got = "none" if isinstance(error, ModuleNotFoundError) else str(error).partition("\n")[0]
    return (
        f"{operation}: {package} must be installed, got {got}; `pip install 'cmimtl[{extra}]'`, or"
        f" `pip install -e '.[{extra}]'` in a checkout, installs it."
    )


def is_ours(error: ImportError) -> bool:
    """Whether what could not be imported is a part of this package: no extra brings it."""
    return (error.name or "").partition(".")[0] in ("cmimtl", "cmimtl_kernels", "benchmarks")


def one_line(operation: str, error: Exception) -> str:
    """What a command says of an error that its user can do something about.

    Args:
        operation: the command, where the error does not name what was done.
        error: ValueError, OSError, ImportError, …
    """
    if isinstance(error, ImportError):
        return missing(operation, error)
    if isinstance(error, OSError) and error.filename is not None:
        return f"{operation}: {error.filename} must be accessible, got {error.strerror}."
    return str(error)
