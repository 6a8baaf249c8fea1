"""Train on data of your own: write it in SLAKE's layout, train, and ask the model.

The data here are drawn: a bright disc on the left or on the right of a dark picture.

python examples/own_data.py FOLDER [--steps N]
"""

import argparse
import json
from pathlib import Path

from PIL import Image, ImageDraw

from cmimtl import QuestionAnswerer, train


def write_set(root: Path) -> None:
    """Write three splits of questions, and a folder of images, each in a folder of its own."""
    for file, first, count in (("train", 0, 32), ("validate", 32, 8), ("test", 40, 8)):
        rows = []
        for number in range(first, first + count):
            side = ("left", "right")[number % 2]
            name = f"disc{number}/source.jpg"
            draw(root / "imgs" / name, side, size=8 + number % 5)
            for question, answer, answer_type in (
                ("Which side of the picture is bright?", side, "OPEN"),
                ("Is the left side bright?", "Yes" if side == "left" else "No", "CLOSED"),
            ):
                rows.append(
                    {
                        "qid": len(rows),
                        "img_name": name,
                        "question": question,
                        "answer": answer,
                        "answer_type": answer_type,
                        "content_type": "Position",
                        "q_lang": "en",
                    }
                )
        (root / f"{file}.json").write_text(json.dumps(rows, indent=1), encoding="utf-8")


def draw(path: Path, side: str, size: int) -> None:
    picture = Image.new("L", (96, 96), 20)
    x, y = (24 if side == "left" else 72), 48
    ImageDraw.Draw(picture).ellipse((x - size, y - size, x + size, y + size), fill=220)
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="where data and run are written")
    parser.add_argument("--steps", type=int, default=150, help="optimizer steps (%(default)s)")
    options = parser.parse_args()
    data, run = options.folder / "data", options.folder / "run"
    write_set(data)
    train(
        run,
        data="slake",
        root=data,
        preset="tiny",
        max_steps=options.steps,
        batch_size=16,
        augmentation=False,
    )
    model = QuestionAnswerer.from_run(run)
    image, question = (
        data / "imgs" / "disc40" / "source.jpg",
        "Which side of the picture is bright?",
    )
    answer = model.answer(image, question)
    print(question)
    print(f"  the classifier: {answer.classes[0][0]} ({answer.classes[0][1]:.0%}); true: left")
    print(f"  the decoder: {answer.generated}")


if __name__ == "__main__":
    main()
