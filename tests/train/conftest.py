"""One small phantom set, and one run on it, for all tests of the commands."""

import pytest
import torch
from safetensors.torch import load_file

from cmimtl.data import write_phantom
from tests.train.commands import run, train_arguments


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    return write_phantom(tmp_path_factory.mktemp("phantom") / "set", n_images=200)


@pytest.fixture(scope="session")
def trained(data, tmp_path_factory):
    """A finished run. Not to be changed."""
    output = tmp_path_factory.mktemp("runs") / "run"
    assert run(*train_arguments(data, output)) == 0
    return output


@pytest.fixture(scope="session")
def close_weights():
    """A check that two folders hold the same weights, to rounding.

    The worst that was measured is 1.3e-5, after four steps at learning rate 1e-3, which have moved
    them by up to 3e-3: Adam divides a gradient by its own size, and those of the contrastive loss
    are small in a new model.
    """

    def check(run_folder, expected_folder):
        expected = load_file(expected_folder / "model.safetensors")
        actual = load_file(run_folder / "model.safetensors")
        assert actual.keys() == expected.keys()
        for name, tensor in actual.items():
            torch.testing.assert_close(tensor, expected[name], rtol=0, atol=5e-5, msg=name)

    return check
