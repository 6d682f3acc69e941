"""The log of one run: everything that is measured goes through here, into files and onto screens.

A *step* is a rollout's number, which is also the version of the weights that sampled it. The row
of step 5 holds the rollout that version 5 sampled, the training that made version 6 of it, and the
evaluation of version 5.
"""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tandem.config import Config, ObserveConfig
from tandem.errors import ConfigError, Stopped
from tandem.observe import metrics
from tandem.observe.journal import (
    CONFIG_FILE,
    METRICS_FILE,
    NOTES_FILE,
    ORDER_FILE,
    RECORD_FILES,
    RUN_FILE,
    SAMPLES_FILE,
    TRACE_FILE,
    MetricsJournal,
    append_line,
    append_lines,
    drop_torn_line,
    plain,
    read_json,
    read_rows,
    resume_lines,
    resume_metrics,
    set_aside,
    write_json,
)
from tandem.observe.log import get_logger
from tandem.observe.origin import describe_origin, describe_settings
from tandem.observe.report import write_report
from tandem.observe.samples import sample_lines
from tandem.observe.sinks import open_sinks
from tandem.observe.table import open_display
from tandem.observe.timers import Span, append_trace, elapsed, seconds_by_name
from tandem.types import Group, Rollout, StepStats

SPAN_METRICS = {"train": "actor_train", "pack": "data_preprocess", "save": "save_model"}
"""The dialect's word for a span of the loop, where it is another one."""

LEARNING_SPANS = ("annotate", "advantage", "pack", "train")
"""Spans of the loop that make up `perf/train_time`."""

LAST_OF_ROWS = ("train/lr", "train/step")
"""Metrics of optimizer steps whose mean says nothing."""

LEARNED_FROM = ("rollout/response_len", "rollout/repetition_frac")
"""Metrics of a rollout that also say something of texts that are imitated."""

FAMILIES = frozenset({"rollout", "train", "eval", "perf", "passrate", "multi_turn"})
"""What metric names begin with."""


class RunLog:
    """Takes what a run measures; owns the run folder's files, the curves and the display.

    Everything that was handed in is on disk when a method returns, so a run may be killed between
    any two calls. Open it with the first step that will be run: a run that goes on from a
    checkpoint forgets what was logged after that checkpoint, a run that begins anew moves an
    earlier run's files aside, and one of no rollouts adds its evaluation to what is there.
    """

    def __init__(
        self, run_dir: Path, config: Config, *, start: int, num_rollout: int, num_devices: int = 1
    ) -> None:
        """`num_devices` are those that sample.

        Raises ConfigError when a sink is not installed, or an evaluation alone would cut a run.
        """
        run_dir.mkdir(parents=True, exist_ok=True)
        self._run_dir = run_dir
        self._config = config
        self._step = start
        self._num_devices = num_devices
        self._logger = get_logger("run")
        self._warned: set[str] = set()
        settings = describe_settings(config)
        self._sinks = open_sinks(config.observe, run_dir, start=start, settings=settings)
        if num_rollout > 0:
            _clear_the_way(run_dir, start)
            write_json(run_dir / CONFIG_FILE, settings)
        else:
            _join(run_dir, start, settings)
        _record_start(run_dir, start, num_rollout)
        self._journal = MetricsJournal(run_dir / METRICS_FILE)
        self._display = open_display(config.observe.progress, num_rollout)

    def step(
        self,
        step: int,
        rollout: Rollout,
        groups: Sequence[Group],
        stats: StepStats | None,
        update: Mapping[str, float],
        spans: Sequence[Span],
    ) -> None:
        """Logs one whole step.

        `rollout` is what sampling gave, `groups` the same with the trainer's columns, `stats` what
        the trainer reported (None when nothing was trained), `update` the numbers of the weight
        update, `spans` the times of this step.
        """
        self._step = step
        row = {
            **self._rollout_row(rollout),
            **metrics.training_metrics(groups),
            **_with_room("perf", update),
            **_time_metrics(spans, stats),
        }
        rows = [] if stats is None else [_with_room("train", one) for one in stats.rows]
        if stats is not None:
            row["train/num_tokens"] = stats.num_tokens
        self._write_curves(step, row, rows)
        if len(rows) > 1:
            row["train_steps"] = rows
        self._journal.write({**row, **_mean_of_rows(rows)}, step=step)
        append_lines(self._run_dir / SAMPLES_FILE, sample_lines(rollout.groups, step=step))
        if self._config.sync.asynchronous == "full":
            append_line(self._run_dir / ORDER_FILE, metrics.order_line(rollout))
        append_trace(self._run_dir / TRACE_FILE, spans, {"step": step})
        self._display.step(self._journal.last)
        self._warn_about(rollout, rows)

    def evaluation(
        self,
        step: int,
        measured: Mapping[str, float],
        groups: Mapping[str, Sequence[Group]] | None = None,
    ) -> None:
        """Logs the evaluation of weights version `step`, with some samples of `groups` by set."""
        self._step = step
        row = {"eval/step": step, **measured}
        for sink in self._sinks:
            sink.write(plain(row), step=step)
        self._journal.write(row, step=step)
        for name, of_set in (groups or {}).items():
            lines = sample_lines(of_set, step=step, set_name=name)
            append_lines(self._run_dir / SAMPLES_FILE, lines)
        self._display.step(self._journal.last)

    def progress(self, work: str, done: int, total: int) -> None:
        """Shows how far a long piece of work is; `done` may fall when a new round begins."""
        self._display.progress(work, done, total)

    def note(self, text: str) -> None:
        """Says something about the run, in the log and in the report."""
        self._logger.info("%s", text)
        self._keep_note("note", text)

    def warn(self, text: str, *, kind: str | None = None) -> None:
        """Says that something is wrong; of one `kind` only the first is said in full."""
        if kind is not None and kind in self._warned:
            self._logger.warning("step %d: %s (again)", self._step, text.partition(":")[0])
        else:
            self._logger.warning("%s", text)
            self._warned.add(kind or text)
        self._keep_note("warning", text, kind)

    def close(self, failure: str | None = None) -> None:
        """Ends the log and writes the report; `failure` says why the run did not end well."""
        self._display.close()
        self._journal.close()
        for sink in self._sinks:
            sink.close()
        _record_end(self._run_dir, failure)
        report = write_report(self._run_dir)
        self._logger.info("report: %s", report)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if isinstance(error, Stopped):
            self.close("asked to stop")
        else:
            self.close(None if error is None else f"{type(error).__name__}: {error}")

    def _rollout_row(self, rollout: Rollout) -> dict[str, Any]:
        observe, groups = self._config.observe, rollout.groups
        samples = [sample for group in groups for sample in group.samples]
        seconds = rollout.metrics.get("perf/rollout_time", 0.0)
        told = metrics.rollout_metrics(groups, category_key=observe.log_reward_category)
        if self._config.algo.loss_type == "sft_loss":  # nobody judged it, and nothing was cut off
            told = {name: value for name, value in told.items() if name.startswith(LEARNED_FROM)}
        return {
            **told,
            "rollout/num_samples": len(samples),
            "rollout/num_tokens": sum(sample.num_sampled for sample in samples),
            **_chosen_metrics(observe, groups),
            **metrics.speed_metrics(groups, seconds, self._num_devices),
            **_with_room("rollout", rollout.metrics),
        }

    def _write_curves(
        self, step: int, row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]
    ) -> None:
        """Sends a step to the sinks: its rollout, then each optimizer step on its own axis."""
        num_rows = max(len(rows), 1)
        by_train_step = self._config.observe.wandb_always_use_train_step
        axis = step * num_rows if by_train_step else step
        for sink in self._sinks:
            sink.write({"rollout/step": axis, **plain(row)}, step=axis)
            for index, one in enumerate(rows):
                place = step * num_rows + index
                sink.write({"train/step": place, **plain(one)}, step=place)

    def _warn_about(self, rollout: Rollout, rows: Sequence[Mapping[str, Any]]) -> None:
        bad = sorted({name for row in rows for name, value in plain(row).items() if value is None})
        if bad:
            self.warn(f"not finite: {', '.join(bad)}", kind="not finite")
        if self._config.algo.loss_type == "sft_loss":
            return  # nobody judges what is only imitated
        sentence = metrics.reward_warning(rollout.groups)
        if sentence is not None:
            self.warn(sentence, kind="equal rewards")
        samples = [sample for group in rollout.groups for sample in group.samples]
        num_missing = sum(sample.reward is None for sample in samples)
        if 0 < num_missing < len(samples):
            self.warn(
                f"{num_missing} of {len(samples)} samples got no verdict: they are left out of "
                "their groups' statistics. A reward that fails or times out shows up like this.",
                kind="missing verdicts",
            )

    def _keep_note(self, level: str, text: str, kind: str | None = None) -> None:
        line = {"step": self._step, "level": level, "kind": kind, "text": text}
        append_line(self._run_dir / NOTES_FILE, line)


def _clear_the_way(run_dir: Path, start: int) -> None:
    """Makes the folder's files end where a run that begins at `start` goes on."""
    if start == 0:
        for name in RECORD_FILES:
            set_aside(run_dir / name)
        return
    resume_metrics(run_dir / METRICS_FILE, start)
    for name in (SAMPLES_FILE, NOTES_FILE, ORDER_FILE):
        resume_lines(run_dir / name, start)
    drop_torn_line(run_dir / TRACE_FILE)


def _join(run_dir: Path, start: int, settings: Mapping[str, Any]) -> None:
    """Makes ready for an evaluation alone, which adds to a run that is there and cuts nothing."""
    path = run_dir / METRICS_FILE
    rows = read_rows(path)
    if rows and rows[-1]["step"] > start:
        raise ConfigError(
            f"{run_dir} holds a run up to step {rows[-1]['step']}; the evaluation of step {start} "
            "has no place behind it. Set --run-dir to another folder"
        )
    if not (run_dir / CONFIG_FILE).exists():
        write_json(run_dir / CONFIG_FILE, settings)


def _record_start(run_dir: Path, start: int, num_rollout: int) -> None:
    run = read_json(run_dir / RUN_FILE) or {"starts": [], "num_rollout": 0}
    run["num_rollout"] = num_rollout or run["num_rollout"]
    run["starts"].append({"time_s": time.time(), "step": start, **describe_origin()})
    run["end"] = None
    write_json(run_dir / RUN_FILE, run)


def _record_end(run_dir: Path, failure: str | None) -> None:
    run = read_json(run_dir / RUN_FILE)
    assert run is not None, "the start of the run was recorded"
    run["end"] = {"time_s": time.time(), "failure": failure}
    write_json(run_dir / RUN_FILE, run)


def _chosen_metrics(observe: ObserveConfig, groups: Sequence[Group]) -> dict[str, float]:
    """The metrics that have a flag of their own."""
    chosen: dict[str, float] = {}
    if observe.log_passrate:
        chosen |= metrics.pass_metrics(groups, "passrate/")
    if observe.log_multi_turn:
        chosen |= metrics.turn_metrics(groups)
    if observe.log_correct_samples:
        chosen |= metrics.correct_metrics(groups)
    return chosen


def _time_metrics(spans: Sequence[Span], stats: StepStats | None) -> dict[str, float]:
    """`perf/{span}_time`, the whole step, and the share of it that the trainer waited."""
    seconds = seconds_by_name(spans)
    inner = {} if stats is None else stats.seconds
    times = {f"perf/{name}_time": value for name, value in inner.items()}
    for name, value in seconds.items():
        times[f"perf/{SPAN_METRICS.get(name, name)}_time"] = value
    step_s = elapsed(spans)
    if step_s <= 0:
        return times
    learning_s = sum(seconds.get(name, 0.0) for name in LEARNING_SPANS)
    times["perf/train_time"] = learning_s
    times["perf/train_wait_time"] = step_s - learning_s
    times["perf/step_time"] = step_s
    times["perf/wait_time_ratio"] = 1.0 - learning_s / step_s
    if stats is not None and seconds.get("train", 0.0) > 0:
        times["perf/actor_train_tok_per_s"] = stats.num_tokens / seconds["train"]
    return times


def _mean_of_rows(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One row for several optimizer steps: means, and of `LAST_OF_ROWS` the last."""
    if not rows:
        return {}
    names = [name for name in rows[-1] if all(name in row for row in rows)]
    means = {name: sum(row[name] for row in rows) / len(rows) for name in names}
    return means | {name: rows[-1][name] for name in names if name.startswith(LAST_OF_ROWS)}


def _with_room(room: str, row: Mapping[str, Any]) -> dict[str, Any]:
    """The row with names that say their family: `loss` becomes `train/loss`."""
    return {
        name if name.partition("/")[0] in FAMILIES else f"{room}/{name}": value
        for name, value in row.items()
    }
