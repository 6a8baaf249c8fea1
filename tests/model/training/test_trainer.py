"""How each parameter is trained: its learning rate and its weight decay."""

import pytest
import torch
from torch import nn

from cmimtl.training.trainer import parameter_groups


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3))
        self.head = nn.Linear(3, 1)
        self.header = nn.Linear(3, 1, bias=False)
        self.frozen = nn.Linear(3, 3).requires_grad_(False)
        self.A_log = nn.Parameter(torch.zeros(3, 2))
        self.A_log._no_weight_decay = True


def test_each_parameter_is_in_one_group():
    model = Model()
    groups = parameter_groups(model, 0.5, 0.25, {"head": 10.0, "encoder.0": 2.0})
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = [
        (names[id(parameter)], group["lr"], group["weight_decay"])
        for group in groups
        for parameter in group["params"]
    ]
    assert sorted(found) == [
        ("A_log", 0.5, 0.0),
        ("encoder.0.bias", 1.0, 0.0),
        ("encoder.0.weight", 1.0, 0.25),
        ("encoder.1.bias", 0.5, 0.0),
        ("encoder.1.weight", 0.5, 0.0),
        ("head.bias", 5.0, 0.0),
        ("head.weight", 5.0, 0.25),
        ("header.weight", 0.5, 0.25),
    ]
    assert len(groups) == len({(group["lr"], group["weight_decay"]) for group in groups})


def test_a_prefix_that_names_nothing():
    for prefix in ("hea", "frozen", "head.weights"):
        with pytest.raises(ValueError, match=f"rate_factors must name .*, got '{prefix}'"):
            parameter_groups(Model(), 0.5, 0.25, {"head": 1.0, prefix: 2.0})
