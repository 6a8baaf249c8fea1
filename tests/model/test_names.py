"""A data set or a fusion is a file and a line in cmimtl/names.py: nothing else has to know it."""

import subprocess
import sys

import pytest
import torch

from cmimtl import names
from cmimtl.cli import main
from cmimtl.data import load_dataset
from cmimtl.modelling.config import CMIMTLConfig
from cmimtl.modelling.fusion import build_fusion
from cmimtl.training.arguments import new_arguments

READER = """
def read(root, split, *, report, shout=False):
    return [f"{root} {split} {shout}"]
"""
FUSION = """
from torch import nn

class Swap(nn.Module):
    def forward(self, visual, text, visual_lengths=None, text_lengths=None):
        return text, visual

def build(config):
    return Swap()
"""


@pytest.fixture(autouse=True)
def new(tmp_path, monkeypatch):
    (tmp_path / "a_reader.py").write_text(READER)
    (tmp_path / "a_fusion.py").write_text(FUSION)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(names.DATASETS, "mine", "a_reader:read")
    monkeypatch.setitem(names.MORE_SPLITS, "mine", ("hard",))
    monkeypatch.setitem(names.FUSIONS, "swap", "a_fusion:build")


def test_a_data_set(capsys):
    assert load_dataset("mine", "here", "hard", shout=True) == ["here hard True"]
    with pytest.raises(ValueError, match=r"split must be one of 'train', .*'hard', got 'dev'"):
        load_dataset("mine", "here", "dev")
    assert new_arguments({"data": "mine", "root": "here"})["data"] == "mine"
    with pytest.raises(SystemExit, match="0"):
        main(["evaluate", "--help"])
    assert "of mine also hard" in " ".join(capsys.readouterr().out.split())


def test_a_fusion():
    config = CMIMTLConfig(fusion="swap")
    visual, text = torch.zeros(1, 2, config.d_model), torch.ones(1, 2, config.d_model)
    assert build_fusion(config)(visual, text) == (text, visual)
    assert new_arguments({"data": "mine", "root": "here", "fusion": "swap"})["fusion"] == "swap"


def test_names_cost_nothing():
    """The command reads them before it imports what is behind them."""
    heavy = {"torch", "numpy", "transformers"}
    code = f"import sys, cmimtl.names; print(len({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "0\n"
