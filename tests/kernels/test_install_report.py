"""What `python -m cmimtl_kernels` says of a machine and of what was built on it."""

import importlib.util
import re
import sys

import pytest
import torch

from cmimtl_kernels import __main__, _library, backends, compiled
from tests.kernels.builds import (
    ROOT,
    load_module,
)


@pytest.mark.parametrize(
    "gpu, architectures, how",
    [
        ((9, 0), "8.0;9.0", "code"),
        ((8, 6), "8.0+PTX", "code"),  # code of 8.0 runs on all of 8.x
        ((8, 0), "8.6+PTX", None),
        ((9, 0), "8.0+PTX", "PTX"),
        ((9, 0), "8.0;8.6", None),
        ((12, 0), "8.0+PTX;9.0", "PTX"),
        ((10, 3), "10.0a+PTX", None),  # of one GPU alone
        ((10, 3), "10.0f", "code"),
        ((12, 0), "10.0f+PTX", None),
    ],
)
def test_how_a_library_runs_on_a_gpu(gpu, architectures, how):
    assert _library.runs_on(gpu, architectures) == how


@pytest.mark.parametrize(
    "gpu, said",
    [
        ((8, 0), None),
        ((9, 0), "its driver compiles the PTX,\nsome seconds at the first call of each kernel"),
        ((7, 5), "none of it runs there.\nTo build it for this machine: pip install "),
    ],
)
def test_report_of_a_gpu_that_the_library_has_no_code_for(monkeypatch, gpu, said):
    monkeypatch.setattr(_library, "record", lambda name: {"architectures": "8.0+PTX"})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *index: gpu)
    text = "\n".join(__main__._gpus_without_code())
    if said is None:
        assert text == ""
    else:
        assert text.count("The cuda library was built for 8.0+PTX, a GPU has") == 1
        assert said in text
    # and no kernel is launched that is not there
    reason = compiled._device_unfit.__wrapped__()
    assert (reason is None) == (gpu >= (8, 0))


def test_a_library_without_code_for_the_gpu_is_not_chosen(monkeypatch):
    monkeypatch.setattr(_library, "record", lambda name: {"architectures": "9.0"})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *index: (8, 0))
    assert compiled._device_unfit.__wrapped__() == (
        "was built for compute capability 9.0, the GPU has 8.0; build it here"
    )


def test_report_of_what_was_built_and_how_long_it_took(monkeypatch):
    note = {"compiler": "c++ 12", "nvcc": "nvcc 13.0", "torch headers": "2.14.1", "compiled": 22,
            "seconds": 97.6, "architectures": "8.0+PTX",
            "architectures for": "any GPU"}  # fmt: skip
    monkeypatch.setattr(_library, "record", lambda name: note)
    assert __main__._built("cuda") == (
        "ok: built by nvcc 13.0, c++ 12 against torch 2.14.1, for 8.0+PTX (any GPU); 22 files "
        "compiled in 98 s"
    )


def test_a_library_from_other_sources_is_not_used(monkeypatch):
    """As after a pull without a build: it lacks what the package asks of it."""
    monkeypatch.setattr(_library, "load_libraries", lambda: {"cpu": "none", "of_old": None})
    assert compiled._missing() == {
        "cpu": "none",
        "of_old": "was built from other sources than this package has; build it again",
    }


def test_a_gpu_that_is_too_old_is_not_chosen(monkeypatch):
    note = {"architectures": "8.0+PTX", "least capability": "8.0"}
    monkeypatch.setattr(_library, "record", lambda name: note)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *index: (7, 5))
    assert compiled._device_unfit.__wrapped__() == (
        "runs on compute capability 8.0 or newer, the GPU has 7.5"
    )


INDEX = " --index-url https://download.pytorch.org/whl/cpu"


@pytest.mark.parametrize(
    "found, cuda, loads, said",
    [
        ("0.29.1", "13.0", True, None),
        ("0.29.1", None, True, None),
        ("0.28.0", "13.0", True, "torchvision 0.28.0 is of another release than torch 2.14.1"),
        ("0.28.0+cpu", None, True, "torchvision 0.28.0+cpu is of another release than torch 2.14"),
        ("0.29.1", None, False, "torchvision 0.29.1 cannot be loaded (no libc10_cuda.so) beside t"),
    ],
)
def test_report_of_a_torchvision_that_does_not_go_with_torch(
    tmp_path, monkeypatch, found, cuda, loads, said
):
    def load(path):
        assert path == str(tmp_path / "_C.so")
        if not loads:
            raise OSError("no library") from OSError("no libc10_cuda.so")

    (tmp_path / "_C.so").touch()
    spec = importlib.util.spec_from_file_location("torchvision", tmp_path / "__init__.py")
    monkeypatch.setattr(__main__.importlib.util, "find_spec", lambda name: spec)
    monkeypatch.setattr(torch.ops, "load_library", load)
    monkeypatch.setattr(torch, "__version__", "2.14.1")
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(__main__.metadata, "version", lambda name: found)
    text = "\n".join(__main__._torchvision())
    if said is None:
        assert text == ""
    else:
        assert said in text
        assert text.endswith(
            "pip install --force-reinstall --no-deps 'torchvision==0.29.*'" + INDEX * (cuda is None)
        )


def test_a_torchvision_that_does_not_go_with_torch_is_named(tmp_path, monkeypatch):
    text = "raise RuntimeError('operator torchvision::nms does not exist')"
    (tmp_path / "timm.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "timm", raising=False)
    monkeypatch.setattr(__main__.metadata, "version", lambda name: "0.28.0")
    with pytest.raises(
        ImportError,
        match="^cmimtl: torchvision must be of the release and the build of torch, got torchvision"
        rf" 0.28.0 beside torch {re.escape(torch.__version__)}; `python -m cmimtl_kernels` tells",
    ):
        load_module(ROOT / "cmimtl/modelling/_timm.py")


def test_report_of_this_machine():
    text = __main__.report()
    for name, backend in backends.BACKENDS.items():
        reason = backend.unavailable()
        assert f"\n  {name:<13} {'ok' if reason is None else 'unavailable: ' + reason}" in text
    picked = backends.auto(backends.Call("selective_scan", "cpu", torch.float32, 16))
    assert f"\n  cpu           {picked}\n" in text


def test_report_of_an_old_library(monkeypatch):
    monkeypatch.setattr(_library, "changed_sources", lambda name: ["csrc/cpu/a.cpp", "csrc/b.h"])
    assert "\nThe cpu library is older than csrc/cpu/a.cpp, csrc/b.h\n" in __main__.report()


@pytest.mark.parametrize(
    "note, origin",
    [
        (None, "cmimtl"),
        ('{"url": "file:///checkouts/a b", "dir_info": {}}', "'file:///checkouts/a b'"),
        ('{"url": "https://x.org/y", "vcs_info": {"vcs": "git"}}', "git+https://x.org/y"),
    ],
)
def test_advice_outside_of_a_checkout_takes_no_cached_wheel(tmp_path, monkeypatch, note, origin):
    class Installed:
        def read_text(self, name):
            return note if name == "direct_url.json" else None

    monkeypatch.setattr(_library, "HERE", tmp_path / "cmimtl_kernels")
    monkeypatch.setattr(__main__.metadata, "distribution", lambda name: Installed())
    command = "pip install --force-reinstall --no-deps --no-cache-dir"
    assert __main__._install_command() == f"{command} {origin}"
