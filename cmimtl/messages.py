"""Turn errors that other packages raise into one line that a command prints."""

from __future__ import annotations

# Top-level module -> the extra that installs it. All other modules come with the extra `models`.
_EXTRAS = {
    "triton": "triton",
    "causal_conv1d": "cuda",
    **dict.fromkeys(
        ("hypothesis", "mambapy", "peft", "pytest", "pytest_benchmark", "xdist"), "test"
    ),
}


def missing(operation: str, error: ImportError) -> str:
    """One line that says which package could not be imported and how to install it.

    Args:
        operation: what needs the package; the line names it.
        error: the error that the import raised.
    """
    package = (error.name or "a package").partition(".")[0]
    extra = _EXTRAS.get(package, "models")
    got = "none" if isinstance(error, ModuleNotFoundError) else str(error).partition("\n")[0]
    return (
        f"{operation}: {package} must be installed, got {got}; `pip install 'cmimtl[{extra}]'`, or"
        f" `pip install -e '.[{extra}]'` in a checkout, installs it."
    )


def is_ours(error: ImportError) -> bool:
    """Whether the module that could not be imported is this project's own: no extra brings it."""
    return (error.name or "").partition(".")[0] in ("cmimtl", "cmimtl_kernels", "benchmarks")


def one_line(operation: str, error: Exception) -> str:
    """One line on an error that the user of a command can do something about.

    Args:
        operation: the command; the line names it where the error does not say what was done.
        error: ValueError, OSError, ImportError, …
    """
    if isinstance(error, ImportError):
        return missing(operation, error)
    if isinstance(error, OSError) and error.filename is not None:
        return f"{operation}: {error.filename} must be accessible, got {error.strerror}."
    return str(error)
