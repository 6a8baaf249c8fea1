"""`python -m cmimtl_kernels` tells what was built, what runs here and what to do if it does not."""

import importlib.util
import json
import platform
import re
import shlex
import sys
from importlib import metadata
from pathlib import Path

import torch

from cmimtl_kernels import _library, backends
from cmimtl_kernels._version import __version__

LOG_LINES = 30  # lines shown of a failed build's log: enough for a compiler's first error


def report() -> str:
    """The whole report; it ends in a newline."""
    lines = [
        f"cmimtl_kernels {__version__} in {_library.HERE}",
        f"torch {torch.__version__}, Python {platform.python_version()}, {platform.platform()}",
        f"CPU: {_cpu()}, {torch.get_num_threads()} threads",
        f"GPU: {_gpu()}",
        "",
        "Backends",
    ]
    for name, backend in backends.BACKENDS.items():
        reason = backend.unavailable()
        state = _built(name) if reason is None else f"unavailable: {reason}"
        lines.append(f"  {name:<13} {state}")
    lines += ["", 'backend="auto" picks (a scan, float32, dstate 16)']
    for device in dict.fromkeys(("cpu", "cuda", *_other_device())):
        present = device != "cuda" or torch.cuda.is_available()
        call = backends.Call("selective_scan", device, torch.float32, dstate=16)
        picked = backends.auto(call) if present else "nothing: there is no such device here"
        lines.append(f"  {device:<13} {picked}")
    for name in _library.NAMES:
        lines += _trouble(name)
    lines += _gpus_without_code() + _torchvision()
    return "\n".join(lines) + "\n"


def _cpu() -> str:
    level = torch.backends.cpu.get_cpu_capability()
    if backends.BACKENDS["cpu"].unavailable():
        return f"{platform.machine()}, torch uses {level}"
    try:
        kernels = f"the kernels use {torch.ops.cmimtl_cpu.isa()}"
    except RuntimeError as error:  # CMIMTL_CPU_CAPABILITY names what the processor lacks
        kernels = f"the kernels: {str(error).splitlines()[0]}"
    return f"{platform.machine()}, {kernels}, torch {level}"


def _gpu() -> str:
    if not torch.cuda.is_available():
        return f"none (torch was built with CUDA {torch.version.cuda or 'switched off'})"
    names = (torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
    return f"{', '.join(names)} (torch was built with CUDA {torch.version.cuda})"


def _other_device() -> tuple[str, ...]:
    accelerator = torch.accelerator.current_accelerator()
    return () if accelerator is None else (accelerator.type,)


def _built(name: str) -> str:
    note = _library.record(name) if name in _library.NAMES else {}
    if not note:
        return "ok"
    tools = [note[key] for key in ("nvcc", "compiler") if key in note]
    text = f"ok: built by {', '.join(tools)} against torch {note['torch headers']}"
    if "seconds" not in note:  # a version before 0.2 wrote the record
        return text
    if "architectures" in note:
        text += f", for {note['architectures']} ({note['architectures for']})"
    return f"{text}; {note['compiled']} files compiled in {note['seconds']:.0f} s"


def _trouble(name: str) -> list[str]:
    """What went wrong with a library and what to do about it; empty where nothing went wrong."""
    note, reason = _library.record(name), _library.load_libraries()[name]
    lines = [f"The {name} library: {reason}"]
    if changed := _library.changed_sources(name):
        lines = [f"The {name} library is older than {', '.join(changed)}"]
    elif reason is None or (note.get("built") is False and "log" not in note):
        return []  # the library is loaded, or was left out for a reason that is shown above
    elif name == "cuda" and torch.version.cuda is None:
        return []  # this torch has no CUDA, so another build would change nothing
    log = note.get("log", "").splitlines()
    lines += [f"  | {line}" for line in log[:LOG_LINES]]
    if len(log) > LOG_LINES:
        lines.append(f"  | and {len(log) - LOG_LINES} lines more in {_library.HERE}/_{name}.json")
    return ["", *lines, f"To build it again: {_install_command()}"]


def _gpus_without_code() -> list[str]:
    """Which GPUs of this machine the CUDA library has no code for, and what to do."""
    built = _library.record("cuda").get("architectures")
    if not built or not torch.cuda.is_available():
        return []
    lines = []
    for gpu in sorted(
        {torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())}
    ):
        runs = _library.runs_on(gpu, built)
        if runs == "code":
            continue
        lines += ["", f"The cuda library was built for {built}, a GPU has {gpu[0]}.{gpu[1]}:"]
        if runs == "PTX":
            lines[-1] += " its driver compiles the PTX,"
            lines += ["some seconds at the first call of each kernel, and keeps what it made."]
        else:
            lines[-1] += " none of it runs there."
        lines += [f"To build it for this machine: {_install_command()}"]
    return lines


def _torchvision() -> list[str]:
    """What to do where torchvision, which timm needs, does not fit this torch."""
    release = re.match(r"2\.(\d+)\.", torch.__version__)
    try:
        found = metadata.version("torchvision")
    except metadata.PackageNotFoundError:
        return []
    if release is None:
        return []
    wanted = f"0.{int(release[1]) + 15}."
    reason = None if found.startswith(wanted) else "is of another release than"
    if reason is None and (error := _cannot_load_torchvision()):
        reason = f"cannot be loaded ({error}) beside"
    if reason is None:
        return []
    # On Linux the default index has torchvision built with CUDA, which a CPU torch cannot load.
    cpu = " --index-url https://download.pytorch.org/whl/cpu" if torch.version.cuda is None else ""
    return [
        "",
        f"torchvision {found} {reason} torch {torch.__version__}",
        "To have the one that fits: pip install --force-reinstall --no-deps"
        f" 'torchvision=={wanted}*'{cpu}",
    ]


def _cannot_load_torchvision() -> str | None:
    """Why the compiled part of torchvision does not load; torchvision itself does not tell."""
    spec = importlib.util.find_spec("torchvision")
    folder = Path(spec.origin).parent if spec and spec.origin else None
    for library in folder.glob("_C*.so") if folder else ():
        try:
            torch.ops.load_library(str(library))
        except OSError as error:
            return str(error.__cause__ or error).strip().splitlines()[0]
    return None


def _install_command() -> str:
    root = _library.HERE.parent
    if (root / "setup.py").is_file() and (root / "csrc").is_dir():
        return f"pip install --no-deps -e {shlex.quote(str(root))}"
    # direct_url.json tells where the package was installed from (PEP 610). A release from an index
    # has no such file.
    note = metadata.distribution("cmimtl").read_text("direct_url.json")
    origin = json.loads(note) if note else {"url": "cmimtl"}
    url = ("git+" if "vcs_info" in origin else "") + origin["url"]
    # Without --no-cache-dir, pip may install the wheel again that has no library.
    return f"pip install --force-reinstall --no-deps --no-cache-dir {shlex.quote(url)}"


def main() -> int:
    sys.stdout.write(report())
    return 0


if __name__ == "__main__":
    sys.exit(main())
