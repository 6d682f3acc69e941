"""`tandem COMMAND ...`: a function for each command, and how a fault reaches the user.

Heavy rooms are imported by the command that needs them, when it runs.
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence

from tandem import __version__
from tandem.errors import ConfigError, Stopped, TandemError

EXIT_FAILED, EXIT_USAGE, EXIT_STOPPED = 1, 2, 143
HELP = {"-h", "--help"}


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


def train(argv: Sequence[str]) -> int:
    """Runs the loop in this process."""
    from tandem.config import help_text, load_config

    if HELP & set(argv):
        _write(help_text())
        return 0
    cfg = load_config(argv)
    from tandem.runtime import run

    run(cfg)
    return 0


def evaluate(argv: Sequence[str]) -> int:
    """Runs the evaluation sets alone: a run of no rollouts."""
    return train(argv if HELP & set(argv) else [*argv, "--num-rollout", "0"])


def show(argv: Sequence[str]) -> int:
    """Prints the settings; the exit status is 2 when they would be refused."""
    from tandem.config import show as shown

    text, is_refused = shown(argv)
    _write(text)
    return 2 if is_refused else 0


def flags(argv: Sequence[str]) -> int:
    """Prints the table of all flags, as in docs/flags.md."""
    from tandem.config import flags_table

    _write(flags_table())
    return 0


def grade(argv: Sequence[str]) -> int:
    """Judges `{"response", "label"}` lines with one reward."""
    from tandem.rewards.command import run_grade

    parser = argparse.ArgumentParser(
        prog="tandem grade",
        description='Reads JSON lines {"response", "label"} and prints {"reward"} or {"error"}.',
    )
    parser.add_argument("--rm-type", required=True, help="name of a reward, e.g. deepscaler")
    chosen = parser.parse_args(argv)
    run_grade(chosen.rm_type, sys.stdin, sys.stdout)
    return 0


def report(argv: Sequence[str]) -> int:
    """Writes the report of a run folder."""
    from tandem.observe.report import write_report

    parser = argparse.ArgumentParser(prog="tandem report")
    parser.add_argument("run", help="run folder, the one that holds metrics.jsonl")
    write_report(parser.parse_args(argv).run)
    return 0


def split(argv: Sequence[str]) -> int:
    """Says how devices are best split between training and sampling."""
    from tandem.observe.split import split_text

    parser = argparse.ArgumentParser(prog="tandem split")
    parser.add_argument("run", help="run folder, the one that holds metrics.jsonl")
    parser.add_argument("--devices", type=int, help="how many to split; those of the run if unset")
    chosen = parser.parse_args(argv)
    _write(split_text(chosen.run, chosen.devices))
    return 0


def samples(argv: Sequence[str]) -> int:
    """Shows what the policy wrote in a run."""
    from tandem.cli.samples import samples_command

    return samples_command(argv)


def convert(argv: Sequence[str]) -> int:
    """Converts a Hugging Face folder to torch_dist, or back."""
    from tandem.checkpoint.convert import convert_command

    return convert_command(argv)


COMMANDS: dict[str, tuple[Callable[[Sequence[str]], int], str]] = {
    "train": (train, "train: sample, judge, learn, save (same flags as train.py)"),
    "eval": (evaluate, "look at the evaluation sets with a checkpoint, and nothing else"),
    "show": (show, "print every setting that flags lead to, with its origin"),
    "flags": (flags, "print the table of all flags"),
    "grade": (grade, "judge JSON lines from standard input with a reward"),
    "convert": (convert, "convert checkpoints: to-torch-dist, to-hugging-face"),
    "samples": (samples, "read a run's samples: prompt, answer, reward, with filters"),
    "split": (split, "how many devices should sample and how many train, from a run"),
    "report": (report, "write report.md and reward.png of a run folder again"),
}


def _usage() -> str:
    lines = ["usage: tandem COMMAND [flags]", ""]
    lines += [f"  {name:<8} {line}" for name, (_, line) in COMMANDS.items()]
    lines += ["", "tandem train --help lists every flag; --version prints the version."]
    return "\n".join(lines)


def _write(text: str) -> None:
    sys.stdout.write(text + "\n")


def _complain(text: str) -> None:
    sys.stderr.write(f"tandem: error: {text}\n")
