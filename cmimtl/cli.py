"""The command ``cmimtl``: demo, train, evaluate, answer, experiment, bench.

What a user can get wrong is answered with one line on stderr and exit code 2. Everything heavy is
imported by the command that needs it, so that ``cmimtl --help`` is quick.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import math
import os
import signal
import sys
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from cmimtl.messages import is_ours, one_line
from cmimtl.names import (
    ASKED,
    DATASETS,
    DECODER_ANSWERS,
    FUSIONS,
    MORE_SPLITS,
    PROBES,
    SPLITS,
)

USER_ERROR = 2
INTERRUPTED = 130  # 128 + SIGINT, as shells have it
TERMINATED = 143  # 128 + SIGTERM

# torchrun sets these variables for its processes. Only a training is shared by several processes.
_TORCHRUN = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK")


class UsageError(ValueError):
    """A command cannot use its arguments."""


class _Terminated(BaseException):
    """The process got SIGTERM."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    All processes that torchrun starts run `train`; only the first one runs any other command.

    Args:
        arguments: the command's name and its arguments; None takes those of the process.
    Returns:
        the exit code: 0, or 2 after a user's error, 130 after an interruption and 143 after a
        request to end.
    """
    # Threads that wait give their core away. By default OpenMP's threads spin, and a neighbour's
    # load then delays all by many times its share. The variable is read when the command imports
    # torch.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    debug = "--debug" in arguments
    first = os.environ.get("RANK", "0") == "0"
    options: dict[str, Any] = {}
    try:
        options = vars(_parser().parse_args(arguments))
        options.pop("debug")
        command = options.pop("command")
        if command is not _train:
            if not first:
                return 0
            for name in _TORCHRUN:
                os.environ.pop(name, None)
        with _orderly_end():
            command(**options)
    except (KeyboardInterrupt, _Terminated) as error:
        interrupted = isinstance(error, KeyboardInterrupt)
        if first:
            word = "interrupted" if interrupted else "asked to end"
            print(f"cmimtl: {word}. {_how_to_go_on(options)}".rstrip(), file=sys.stderr)
        return INTERRUPTED if interrupted else TERMINATED
    except (ValueError, OSError, FloatingPointError, ImportError) as error:
        if debug or (isinstance(error, ImportError) and is_ours(error)):
            raise
        # Every process finds a mistake in the arguments; only the first one tells of it.
        if first or not isinstance(error, UsageError):
            print(one_line(" ".join(("cmimtl", *arguments[:1])), error), file=sys.stderr)
        return USER_ERROR
    return 0


@contextlib.contextmanager
def _orderly_end() -> Iterator[None]:
    """End the body on SIGTERM as on an interruption, and keep threads from printing tracebacks.

    A thread that cannot write prints none, because the main thread gets the error too.
    """

    def terminate(number: int, frame: object) -> None:
        # Where a whole group of processes is asked, those that load data have ended too, which
        # PyTorch makes an error of wherever this process is then.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        raise _Terminated

    def quiet(failed: threading.ExceptHookArgs) -> None:
        if not isinstance(failed.exc_value, OSError):
            threading.__excepthook__(failed)

    before = threading.excepthook
    threading.excepthook = quiet
    handler = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, handler)
        threading.excepthook = before


def _how_to_go_on(options: dict[str, Any]) -> str:
    """One sentence on how to go on with an interrupted training, empty where that is impossible."""
    output = options.get("output_dir")
    if output is None:  # the command trains nothing
        return ""
    from cmimtl.runs import how_to_go_on

    if "resume" in options:
        return how_to_go_on(Path(output)) or ""
    return "The same command goes on with it." if how_to_go_on(Path(output) / "run") else ""


class _Parser(argparse.ArgumentParser):
    """An argument parser whose errors have this project's form, without abbreviations."""

    def __init__(self, **options):
        super().__init__(**options, allow_abbrev=False)

    def error(self, message: str):
        name, _, rest = message.removeprefix("argument ").partition(": ")
        if rest.startswith("must "):  # the message is from a converter below
            raise UsageError(f"{self.prog}: {name} {rest}")
        raise UsageError(
            f"{self.prog}: arguments must be as its usage says, got this: {message};"
            f" `{self.prog} --help` shows the usage."
        )


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="cmimtl", description="Medical visual question answering with Cross-Mamba fusion."
    )
    parser.add_argument(
        "--version",
        action=_Version,
        nargs=0,
        default=argparse.SUPPRESS,  # the commands' functions do not take it
        help="show the versions of this package and PyTorch",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=_Parser)
    for add in (_add_demo, _add_train, _add_evaluate, _add_answer, _add_experiment, _add_bench):
        add(commands).add_argument(
            "--debug", action="store_true", help="show where an error comes from"
        )
    return parser


class _Version(argparse.Action):
    """Prints the versions and ends the process, without importing what it prints of."""

    def __call__(self, parser, namespace, values, option_string=None):
        from importlib.metadata import version

        print(f"cmimtl {version('cmimtl')}, torch {version('torch')}")
        parser.exit()


def _add_demo(commands) -> argparse.ArgumentParser:
    about = "train the tiny model on the embedded data set, evaluate it, answer three questions"
    demo = commands.add_parser("demo", help=about, description=about)
    demo.set_defaults(command=_demo)
    demo.add_argument("--output-dir", metavar="DIR", default="cmimtl-demo", help="(%(default)s)")
    demo.add_argument("--json", metavar="FILE", help="where to write the scores")
    demo.add_argument("--seed", type=_whole(0), default=0, help="the model's seed (%(default)s)")
    demo.add_argument("--thorough", action="store_true", help="train four times as long")
    return demo


def _add_train(commands) -> argparse.ArgumentParser:
    about = "train a model; what is not given comes from the preset"
    train = commands.add_parser("train", help=about, description=about)
    train.set_defaults(command=_train)
    train.add_argument("--data", type=_one_of(DATASETS), metavar="NAME", help=", ".join(DATASETS))
    train.add_argument("--root", metavar="DIR", help="folder of the data set")
    train.add_argument("--preset", metavar="NAME", help="base, the paper's model, or tiny (tiny)")
    train.add_argument("--fusion", type=_one_of(FUSIONS), metavar="NAME", help=", ".join(FUSIONS))
    train.add_argument("--output-dir", metavar="DIR", help="folder of the run")
    train.add_argument(
        "--weights", metavar="DIR", help="folder of pretrained weights (the hub if none)"
    )
    train.add_argument(
        "--resume",
        action="store_true",
        help="go on with the run in --output-dir; other arguments may be left out; more --epochs,"
        " or --max-steps where it was started with them, make it longer",
    )
    train.add_argument("--seed", type=_whole(0), metavar="N")
    train.add_argument("--max-steps", type=_whole(1), metavar="N", help="optimizer steps")
    train.add_argument("--epochs", type=_whole(1), metavar="N")
    train.add_argument("--batch-size", type=_whole(1), metavar="N", help="questions per process")
    train.add_argument(
        "--accumulate", type=_whole(1), metavar="N", help="batches per optimizer step"
    )
    train.add_argument("--learning-rate", type=_positive, metavar="X")
    train.add_argument("--weight-decay", type=_positive_or_0, metavar="X")
    train.add_argument(
        "--min-answer-count",
        type=_whole(1),
        metavar="N",
        help="how often an answer occurs in training to be a class of the classifier (1)",
    )
    train.add_argument(
        "--set",
        dest="changes",
        type=_setting,
        action="append",
        metavar="NAME=VALUE",
        help="a value of the preset's configuration, such as fusion_layers=2 or"
        " vision_options.depth=4; may be repeated",
    )
    train.add_argument(
        "--decoder-answers",
        type=_one_of(DECODER_ANSWERS),
        metavar="NAME",
        help="own, or shuffled: the decoder learns the answers to other questions of the same type,"
        " a control (own)",
    )
    train.add_argument(
        "--augmentation",
        action=argparse.BooleanOptionalAction,
        help="shift, turn and tone the images a little in training",
    )
    train.add_argument("--bf16", action=argparse.BooleanOptionalAction, help="bfloat16 autocast")
    train.add_argument(
        "--save-every", type=_whole(1), metavar="N", help="steps between checkpoints (an epoch)"
    )
    train.add_argument("--keep", type=_whole(1), metavar="N", help="checkpoints to keep on disk")
    train.add_argument("--log-every", type=_whole(1), metavar="N", help="steps between log lines")
    train.add_argument("--workers", type=_whole(0), metavar="N", help="processes that load data")
    return train


def _add_evaluate(commands) -> argparse.ArgumentParser:
    about = "score a trained model on a split, with controls beside it"
    evaluate = commands.add_parser("evaluate", help=about, description=about)
    evaluate.set_defaults(command=_evaluate)
    evaluate.add_argument("run", metavar="DIR", help="output folder of `cmimtl train`")
    evaluate.add_argument(
        "--data", type=_one_of(DATASETS), metavar="NAME", help="data set (the run's own)"
    )
    evaluate.add_argument("--root", metavar="DIR", help="its folder (the run's own)")
    more = [f"of {name} also {', '.join(splits)}" for name, splits in MORE_SPLITS.items()]
    evaluate.add_argument(
        "--split",
        type=_one_of((*SPLITS, *itertools.chain(*MORE_SPLITS.values()))),
        metavar="NAME",
        default="test",
        help="; ".join((", ".join(SPLITS), *more)) + " (%(default)s)",
    )
    evaluate.add_argument(
        "--probe",
        type=_one_of(PROBES),
        metavar="NAME",
        help=f"ask under another condition, and keep the answers: {', '.join(PROBES)}",
    )
    evaluate.add_argument("--json", metavar="FILE", help="where to write the scores")
    evaluate.add_argument("--batch-size", type=_whole(1), default=64, metavar="N")
    return evaluate


def _add_answer(commands) -> argparse.ArgumentParser:
    about = "answer a question about an image with both heads"
    answer = commands.add_parser("answer", help=about, description=about)
    answer.set_defaults(command=_answer)
    answer.add_argument("run", metavar="DIR", help="output folder of `cmimtl train`")
    answer.add_argument("image", metavar="IMAGE", help="PNG, JPEG, DICOM, …")
    answer.add_argument("question", metavar="QUESTION")
    answer.add_argument(
        "--frame",
        type=_whole(0),
        metavar="N",
        help="which frame or page of IMAGE, counted from 0 (the middle one)",
    )
    answer.add_argument(
        "--output", metavar="FILE", help="a picture of the answers, with the attention"
    )
    return answer


def _add_experiment(commands) -> argparse.ArgumentParser:
    about = "answer a question about the model by a study: many trainings, compared"
    experiment = commands.add_parser("experiment", help=about, description=about)
    experiment.set_defaults(command=_experiment)
    experiment.add_argument("name", type=_one_of(ASKED), metavar="NAME", help=", ".join(ASKED))
    experiment.add_argument(
        "--data", type=_one_of(DATASETS), metavar="NAME", default="phantom", help="(%(default)s)"
    )
    experiment.add_argument("--root", metavar="DIR", help="its folder (a phantom set is drawn)")
    experiment.add_argument("--preset", metavar="NAME", default="tiny", help="(%(default)s)")
    experiment.add_argument("--weights", metavar="DIR", help="folder of pretrained weights")
    experiment.add_argument(
        "--seeds", type=_whole(1), default=3, metavar="N", help="number of seeds (%(default)s)"
    )
    experiment.add_argument(
        "--jobs", type=_whole(1), default=1, metavar="N", help="runs at a time (%(default)s)"
    )
    experiment.add_argument(
        "--output-dir", metavar="DIR", default="cmimtl-experiments", help="(%(default)s)"
    )
    experiment.add_argument(
        "--quick", action="store_true", help="trainings of seconds, which test the study itself"
    )
    experiment.add_argument(
        "--task", type=_whole(0), metavar="N", help="only the run of this number, for schedulers"
    )
    experiment.add_argument(
        "--script", metavar="FILE", help="run nothing; write a SLURM script of all runs"
    )
    return experiment


def _add_bench(commands) -> argparse.ArgumentParser:
    about = "pictures and a page from records of `pytest benchmarks/`; figures from compiled code"
    bench = commands.add_parser("bench", help=about, description=about)
    bench.set_defaults(command=_bench)
    bench.add_argument(
        "tool", type=_one_of(("report", "static")), metavar="TOOL", help="report or static"
    )
    bench.add_argument(
        "arguments", nargs=argparse.REMAINDER, metavar="…", help="`… TOOL --help` shows them"
    )
    return bench


def _whole(smallest: int) -> Callable[[str], int]:
    def convert(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = smallest - 1
        if number < smallest:
            raise argparse.ArgumentTypeError(
                f"must be a whole number of at least {smallest}, got {text!r}."
            )
        return number

    return convert


def _positive(text: str) -> float:
    number = _number(text)
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number greater than 0, got {text!r}.")
    return number


def _positive_or_0(text: str) -> float:
    number = _number(text)
    if not 0 <= number < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number of at least 0, got {text!r}.")
    return number


def _setting(text: str) -> tuple[str, object]:
    """NAME=VALUE; the value as JSON has it, or else as text."""
    name, sign, value = text.partition("=")
    if not name or not sign:
        raise argparse.ArgumentTypeError(f"must have the form NAME=VALUE, got {text!r}.")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _one_of(names: Collection[str]) -> Callable[[str], str]:
    def convert(text: str) -> str:
        if text not in names:
            raise argparse.ArgumentTypeError(f"must be one of {', '.join(names)}, got {text!r}.")
        return text

    return convert


def _demo(output_dir: str, json: str | None, seed: int, thorough: bool) -> None:
    from cmimtl.demo import run_demo

    run_demo(output_dir, json_path=json, seed=seed, thorough=thorough)


def _train(
    output_dir: str | None,
    resume: bool,
    changes: list[tuple[str, object]] | None,
    **given: object,
) -> None:
    from cmimtl.training.train import train

    if output_dir is None:
        raise UsageError("cmimtl train: --output-dir must name the folder of the run, got none.")
    train(output_dir, resume=resume, changes=None if changes is None else dict(changes), **given)


def _evaluate(run: str, probe: str | None, json: str | None, **options: Any) -> None:
    from cmimtl.evaluation.evaluate import evaluate_run
    from cmimtl.evaluation.probes import probe_run

    if probe is None:
        evaluate_run(run, json_path=json, **options)
    else:
        probe_run(run, probe, json_path=json, **options)


def _answer(run: str, image: str, question: str, frame: int | None, output: str | None) -> None:
    from cmimtl.evaluation.explain import answer_and_draw

    answer_and_draw(run, image, question, frame=frame, output=output)


def _experiment(name: str, **options: Any) -> None:
    from cmimtl.experiments.experiment import run_experiments

    run_experiments(name, **options)


def _bench(tool: str, arguments: Sequence[str]) -> None:
    from cmimtl.bench import run_bench

    run_bench(tool, arguments)


if __name__ == "__main__":
    sys.exit(main())
