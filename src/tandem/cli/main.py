"""`tandem COMMAND ...`: which function answers, and how a fault reaches the user."""

import os
import sys
from collections.abc import Callable, Sequence

from tandem import __version__
from tandem.cli import commands
from tandem.errors import ConfigError, Stopped, TandemError

COMMANDS: dict[str, tuple[Callable[[Sequence[str]], int], str]] = {
    "train": (commands.train, "train: sample, judge, learn, save (same flags as train.py)"),
    "eval": (commands.evaluate, "look at the evaluation sets with a checkpoint, and nothing else"),
    "show": (commands.show, "print every setting that flags lead to, with its origin"),
    "flags": (commands.flags, "print the table of all flags"),
    "grade": (commands.grade, "judge JSON lines from standard input with a reward"),
    "convert": (commands.convert, "convert checkpoints: to-torch-dist, to-hugging-face"),
    "samples": (commands.samples, "read a run's samples: prompt, answer, reward, with filters"),
    "split": (commands.split, "how many devices should sample and how many train, from a run"),
    "report": (commands.report, "write report.md and reward.png of a run folder again"),
}

EXIT_FAILED, EXIT_USAGE, EXIT_STOPPED = 1, 2, 143


def main(argv: Sequence[str] | None = None) -> int:
    """The exit status: 0 done, 1 a fault of the run, 2 settings that cannot work, 143 stopped."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help", "help"):
        _write(_usage())
        return 0
    if words[0] in ("-V", "--version"):
        _write(f"tandem {__version__}")
        return 0
    command = COMMANDS.get(words[0])
    if command is None:
        _complain(f"tandem has no command {words[0]!r}; there are {', '.join(COMMANDS)}")
        return EXIT_USAGE
    try:
        return command[0](words[1:])
    except ConfigError as error:
        for failure in error.failures:
            _complain(failure)
        return EXIT_USAGE
    except Stopped:
        _complain("stopped as asked; what was learnt is saved where --save says")
        return EXIT_STOPPED
    except TandemError as error:
        _complain(str(error))
        return EXIT_FAILED
    except BrokenPipeError:
        # the reader left; the interpreter must not complain about it at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _usage() -> str:
    lines = ["usage: tandem COMMAND [flags]", ""]
    lines += [f"  {name:<8} {line}" for name, (_, line) in COMMANDS.items()]
    lines += ["", "tandem train --help lists every flag; --version prints the version."]
    return "\n".join(lines)


def _write(text: str) -> None:
    sys.stdout.write(text + "\n")


def _complain(text: str) -> None:
    sys.stderr.write(f"tandem: error: {text}\n")
