"""One function per command; each imports what it needs when it runs."""

import argparse
import sys
from collections.abc import Sequence

HELP = {"-h", "--help"}


def train(argv: Sequence[str]) -> int:
    """Runs the loop in this process."""
    from tandem.config import help_text, load_config

    if HELP & set(argv):
        sys.stdout.write(help_text() + "\n")
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
    sys.stdout.write(text + "\n")
    return 2 if is_refused else 0


def flags(argv: Sequence[str]) -> int:
    """Prints the table of all flags, as in docs/flags.md."""
    from tandem.config import flags_table

    sys.stdout.write(flags_table() + "\n")
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
    sys.stdout.write(split_text(chosen.run, chosen.devices) + "\n")
    return 0


def samples(argv: Sequence[str]) -> int:
    """Shows what the policy wrote in a run."""
    from tandem.cli.samples import samples_command

    return samples_command(argv)


def convert(argv: Sequence[str]) -> int:
    """Converts a Hugging Face folder to torch_dist, or back."""
    from tandem.checkpoint.convert import convert_command

    return convert_command(argv)
