"""The main job from end to end on the embedded data set: draw, train, evaluate, answer."""

from __future__ import annotations

import os
import time
from pathlib import Path

from rich.console import Console

from cmimtl.answer import QuestionAnswerer
from cmimtl.batches import ImageCache
from cmimtl.data import VQAExample, write_phantom
from cmimtl.evaluate import evaluate, evaluate_generation, print_generation, print_scores
from cmimtl.explain import draw
from cmimtl.files import check_writable, write_json
from cmimtl.train import read_split, train

# Questions that are answered aloud: one closed, one open of one word, one described in words.
SHOWN = ("Is the lesion large or small?", "Which body part is shown?", "Describe the abnormality.")


def run_demo(
    output_dir: str | os.PathLike[str],
    *,
    json_path: str | os.PathLike[str] | None = None,
    seed: int = 0,
    max_steps: int | None = None,
    n_images: int = 2400,
) -> dict[str, object]:
    """Train the tiny model on the phantom set and show that it looks at the images.

    Args:
        output_dir: folder for the data set ("data"), the run ("run") and the picture
            ("answers.png"). What an interrupted demo left there is gone on with.
        json_path: where the scores are written.
        seed: of the model.
        max_steps: optimizer steps; the preset's epochs where None.
        n_images: pictures of the phantom set.
    Returns:
        the scores of :func:`cmimtl.evaluate.evaluate` on the test split, with "compositional" (the
        decoder on descriptions never seen whole), "seconds" and "seed".
    Raises:
        ValueError, DataError: output_dir or json_path cannot be used.
    """
    started = time.monotonic()
    if json_path is not None:
        json_path = check_writable("demo", "json", json_path)
    output = Path(output_dir)
    data, run, picture = output / "data", output / "run", output / "answers.png"
    check_writable("demo", "output_dir", picture)
    write_phantom(data, n_images)
    resume = (run / "run.json").is_file()
    train(
        run, resume=resume, data="phantom", root=data, preset="tiny", seed=seed, max_steps=max_steps
    )

    console = Console()
    answerer = QuestionAnswerer.from_run(run, batch_size=128)
    splits = {
        name: read_split("phantom", data, name) for name in ("train", "test", "compositional")
    }
    paths = [example.image for name in ("test", "compositional") for example in splits[name]]
    images = ImageCache(paths, answerer.image_size)
    scores = evaluate(answerer, answerer.vocabulary, splits["train"], splits["test"], images)
    print_scores(scores, "phantom set, test split", console)
    scores["compositional"] = evaluate_generation(answerer, splits["compositional"], images)
    print_generation(scores["compositional"], "descriptions never seen whole", console)

    shown = [_first(splits["test"], question, number) for number, question in enumerate(SHOWN)]
    answers = [answerer.answer(example.image, example.question) for example in shown]
    for example, answer in zip(shown, answers, strict=True):
        best, probability = answer.classes[0]
        console.print(
            f"{example.question} [bold]{best}[/] ({probability:.0%}); in words:"
            f" [bold]{answer.generated}[/]; true: {example.answer}"
        )
    draw(picture, answers, [example.answer for example in shown])
    scores |= {"seconds": time.monotonic() - started, "seed": seed}
    console.print(f"{picture} shows where the model looked; {scores['seconds']:.0f} s in all")
    if json_path is not None:
        write_json(json_path, scores)
    return scores


def _first(examples: list[VQAExample], question: str, skip: int) -> VQAExample:
    """An example with this question, each call another picture."""
    chosen = [example for example in examples if example.question == question]
    return chosen[skip % len(chosen)]
