"""The examples run as they stand, and do what their last line says."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

EXPECTED = {
    "kernel": "two parts give what the whole sequence gives",
    "block": r"(9\d|100)% of new samples are right",
    "own_data": "the decoder:",
}
ARGUMENTS = {"own_data": ["{tmp}", "--steps", "2"]}


def test_every_example_is_run():
    assert {path.stem for path in (ROOT / "examples").glob("*.py")} == set(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_example(name, tmp_path):
    arguments = [argument.format(tmp=tmp_path) for argument in ARGUMENTS.get(name, [])]
    command = [sys.executable, str(ROOT / "examples" / f"{name}.py"), *arguments]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert re.search(EXPECTED[name], run.stdout.splitlines()[-1])
