"""Small data sets on disk, in the layouts of their authors."""

import json
from pathlib import Path

import pytest
from PIL import Image


class DataSet:
    """Writes rows and the pictures that they name; `write` gives the root."""

    def __init__(self, root: Path):
        self.root = root

    def write(self, file: str, rows: list[dict] | str, images: dict[str, list[str]]) -> Path:
        """`rows` as JSON, or text as it is. images: folder -> names of pictures in it."""
        self.root.mkdir(exist_ok=True)
        text = rows if isinstance(rows, str) else json.dumps(rows)
        (self.root / file).write_text(text, encoding="utf-8")
        for folder, names in images.items():
            for name in names:
                path = self.root / folder / name
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("L", (8, 8)).save(path)
        return self.root


@pytest.fixture
def data_set(tmp_path):
    return DataSet(tmp_path / "set")
