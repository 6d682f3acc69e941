"""`report.md`: what a run did, on one page, from the files of its folder alone."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tandem.errors import DataError
from tandem.observe.journal import (
    CONFIG_FILE,
    METRICS_FILE,
    NOTES_FILE,
    RUN_FILE,
    SAMPLES_FILE,
    read_json,
    read_rows,
)
from tandem.observe.plot import Draw, eval_series, find_plotter, series
from tandem.observe.table import COLUMNS, NO_VALUE, short

REPORT_FILE = "report.md"
PLOT_FILE = "reward.png"
MAX_TABLE_ROWS = 20

TIME_SPLIT = (
    ("rollout", "sampling and judging"),
    ("annotate", "log-probs before training"),
    ("advantage", "advantages"),
    ("data_preprocess", "packing"),
    ("actor_train", "training"),
    ("update_weights", "weight update"),
    ("save_model", "saving"),
    ("eval", "evaluation"),
)
"""`perf/{name}_time` of the parts of a run that do not overlap, and what they are."""

SHOWN_SETTINGS = (
    ("model", "hf_checkpoint"),
    ("data", "prompt_data"),
    ("data", "rollout_batch_size"),
    ("data", "n_samples_per_prompt"),
    ("rollout", "rollout_max_response_len"),
    ("rollout", "rollout_temperature"),
    ("reward", "rm_type"),
    ("reward", "custom_rm_path"),
    ("algo", "advantage_estimator"),
    ("algo", "kl_loss_coef"),
    ("optim", "lr"),
    ("batch", "global_batch_size"),
    ("checkpoint", "load"),
    ("checkpoint", "save"),
    ("debug", "seed"),
)

Row = Mapping[str, Any]
Lines = list[str]


def write_report(
    run_dir: Path | str, *, draw: Draw | None = None, has_plotter: bool = True
) -> Path:
    """The path of the report that was written about a run folder, with its plot beside it.

    Works on a run that is going on or was killed, too. `draw` makes the plot: matplotlib's by
    default, where it is installed and `has_plotter` is not False. Raises DataError when there is
    no such folder.
    """
    run_dir = Path(run_dir)
    if not run_dir.is_dir():
        raise DataError(
            f"there is no run folder {run_dir}; name the folder that holds {METRICS_FILE} "
            "(--run-dir of the run, else its --save)"
        )
    draw = draw or (find_plotter() if has_plotter else None)
    rows = read_rows(run_dir / METRICS_FILE)
    run = read_json(run_dir / RUN_FILE) or {"starts": [], "end": None, "num_rollout": None}
    config = read_json(run_dir / CONFIG_FILE) or {}
    if draw is not None and rows:
        draw(rows, run_dir / PLOT_FILE)
    lines = [
        f"# Run {run_dir.resolve().name}",
        "",
        *_status(rows, run),
        *_picture(rows, draw),
        *_warnings(read_rows(run_dir / NOTES_FILE)),
        *_result(rows),
        *_evaluation(rows),
        *_steps(rows),
        *_times(rows),
        *_settings(config),
        *_origin(run),
        "## Files",
        "",
        f"`{METRICS_FILE}`: every number, one line a step. `{SAMPLES_FILE}`: prompts and answers to"
        f" read. `{CONFIG_FILE}`: every setting. `{RUN_FILE}`: command, versions, machine.",
        "",
    ]
    path = run_dir / REPORT_FILE
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def _status(rows: Sequence[Row], run: Row) -> Lines:
    num_steps = sum("rollout/raw_reward" in row or "train/loss" in row for row in rows)
    end, starts = run["end"], run["starts"]
    if end is None:
        state = "Still running, or ended without a word"
    elif end["failure"] is None:
        state = "Finished"
    else:
        state = f"**Ended early, {end['failure']}**"
    line = f"{state}: {num_steps} of {run['num_rollout'] or 0} steps"
    if starts:
        began = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(starts[0]["time_s"]))
        line += f", begun {began}"
    if starts and end is not None:
        line += f", {duration(end['time_s'] - starts[-1]['time_s'])} since the last start"
    if len(starts) > 1:
        resumes = ", ".join(str(start["step"]) for start in starts[1:])
        line += f", resumed at step {resumes}"
    return [line + ".", ""]


def _picture(rows: Sequence[Row], draw: Draw | None) -> Lines:
    if not rows:
        return ["Nothing was measured yet.", ""]
    if draw is None:
        return [
            "No plot: matplotlib is not installed. Run `pip install 'tandem-rl[plot]'`, then"
            " `tandem report` with this folder.",
            "",
        ]
    return [f"![reward by step]({PLOT_FILE})", ""]


def _warnings(notes: Sequence[Row]) -> Lines:
    """The warnings first, then the notes, each once with how often it was said."""
    lines: Lines = []
    for level, title in (("warning", "Warnings"), ("note", "Notes")):
        first: dict[str, Row] = {}
        counts: dict[str, int] = {}
        for note in notes:
            if note["level"] == level:
                kind = note["kind"] or note["text"]
                first.setdefault(kind, note)
                counts[kind] = counts.get(kind, 0) + 1
        if not first:
            continue
        lines += [f"## {title}", ""]
        for kind, note in first.items():
            often = f" ({counts[kind]} times, " if counts[kind] > 1 else " ("
            lines.append(f"- {note['text']}{often}first at step {note['step']})")
        lines.append("")
    return lines


def _result(rows: Sequence[Row]) -> Lines:
    rewards = series(rows, "rollout/raw_reward")
    if not rewards:
        return []
    best_step, best = max(rewards, key=lambda point: point[1])
    lines = [
        "## Result",
        "",
        f"- reward in training: {short(rewards[0][1])} at first, {short(rewards[-1][1])} at last, "
        f"best {short(best)} at step {best_step}",
    ]
    if all(reward == rewards[0][1] for _, reward in rewards) and len(rewards) > 1:
        lines.append(f"- **the mean reward was {short(rewards[0][1])} in every single step**")
    lengths = series(rows, "rollout/response_len/mean")
    if lengths:
        lines.append(f"- tokens in an answer: {short(lengths[0][1])} to {short(lengths[-1][1])}")
    tokens = sum(value for _, value in series(rows, "rollout/num_tokens"))
    samples = sum(value for _, value in series(rows, "rollout/num_samples"))
    lines.append(f"- sampled: {samples:,.0f} answers, {tokens:,.0f} tokens")
    return [*lines, ""]


def _evaluation(rows: Sequence[Row]) -> Lines:
    by_set = eval_series(rows)
    if not by_set:
        return []
    body = []
    for name, points in by_set.items():
        best_step, best = max(points, key=lambda point: point[1])
        last_row = next(row for row in reversed(rows) if f"eval/{name}" in row)
        passes = [
            f"{key.rpartition('@')[2]}: {short(value)}"
            for key, value in last_row.items()
            if key.startswith(f"eval/{name}-pass@") and value is not None
        ]
        body.append(
            [
                name,
                f"{short(points[0][1])} (step {points[0][0]})",
                f"{short(points[-1][1])} (step {points[-1][0]})",
                f"{short(best)} (step {best_step})",
                ", ".join(passes) or NO_VALUE,
            ]
        )
    header = ["set", "first", "last", "best", "last pass@k"]
    return ["## Evaluation", "", *markdown_table(header, body), ""]


def _steps(rows: Sequence[Row]) -> Lines:
    if not rows:
        return []
    shown = thin_out(rows, MAX_TABLE_ROWS)
    columns = [column for column in COLUMNS if any(column.text(row) for row in shown)]
    body = [
        [str(row["step"]), *(column.text(row) or NO_VALUE for column in columns)] for row in shown
    ]
    header = ["step", *(column.title for column in columns)]
    return ["## Steps", "", *markdown_table(header, body), ""]


def _times(rows: Sequence[Row]) -> Lines:
    sums = {
        title: sum(value for _, value in series(rows, f"perf/{name}_time"))
        for name, title in TIME_SPLIT
    }
    steps = sum(value for _, value in series(rows, "perf/step_time"))
    total = max(steps + sums["evaluation"], sum(sums.values()))
    if total <= 0:
        return []
    sums["everything else"] = total - sum(sums.values())
    body = [
        [title, duration(seconds), f"{100 * seconds / total:.1f}%"]
        for title, seconds in sums.items()
        if seconds / total >= 0.0005
    ]
    return ["## Time", "", *markdown_table(["part", "time", "share"], body), ""]


def _settings(config: Mapping[str, Any]) -> Lines:
    lines = []
    for section, name in SHOWN_SETTINGS:
        value = config.get(section, {}).get(name)
        if value is not None:
            lines.append(f"- `--{name.replace('_', '-')}`: `{value}`")
    return ["## Settings", "", *lines, ""] if lines else []


def _origin(run: Row) -> Lines:
    if not run["starts"]:
        return []
    start = run["starts"][-1]
    machine, versions = start["machine"], start["versions"]
    devices = ", ".join(machine.get("gpus", [])) or "no GPU"
    return [
        "## Machine and versions",
        "",
        f"- {machine['processor']}, {machine['num_cores']} cores, {machine['memory_gib']} GiB;"
        f" {devices}",
        "- " + ", ".join(f"{name} {version}" for name, version in versions.items()),
        f"- commit of the working folder: {start['commit'] or 'none'}",
        f"- command: `{' '.join(start['command'])}`",
        "",
    ]


def thin_out(rows: Sequence[Row], count: int) -> list[Row]:
    """At most `count` rows at even distances, the first and the last among them."""
    if len(rows) <= count:
        return list(rows)
    places = {round(index * (len(rows) - 1) / (count - 1)) for index in range(count)}
    return [rows[place] for place in sorted(places)]


def markdown_table(header: Sequence[str], body: Sequence[Sequence[str]]) -> Lines:
    """The lines of a Markdown table."""
    return [
        "| " + " | ".join(header) + " |",
        "|" + "---|" * len(header),
        *("| " + " | ".join(cells) + " |" for cells in body),
    ]


def duration(seconds: float) -> str:
    """A time as people say it: 12.3 s, 4 min 05 s, 3 h 12 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
