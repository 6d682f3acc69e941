"""The picture of a run: reward and evaluation above, length of answers below."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tandem.observe.table import eval_sets

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Row = Mapping[str, Any]
Draw = Callable[[Sequence[Row], Path], None]

BLUE, ORANGE, GREY = "#3465a4", "#d9730d", "#8a8a8a"
EVAL_COLORS = (ORANGE, "#2a9d5c", "#9b4dca", "#b08900")
SMOOTH_FROM = 30
"""Curves with more points are drawn pale, with a running mean over a tenth of them on top."""


def find_plotter() -> Draw | None:
    """The function that draws, or None when matplotlib is not installed."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        return None
    return draw_run


def draw_run(rows: Sequence[Row], path: Path) -> None:
    """Writes the picture of the rows of `metrics.jsonl` as a PNG."""
    # a Figure of its own needs no display and leaves pyplot's state alone
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6.5), layout="constrained", dpi=110)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    _draw_curve(top, series(rows, "rollout/raw_reward"), BLUE, "reward in training")
    for (name, points), color in zip(eval_series(rows).items(), EVAL_COLORS * 9, strict=False):
        top.plot(*zip(*points, strict=True), color=color, marker="o", ms=4, label=f"eval {name}")
    top.set_ylabel("mean reward")
    _draw_curve(bottom, series(rows, "rollout/response_len/mean"), GREY, "tokens in an answer")
    bottom.set_ylabel("tokens")
    bottom.set_ylim(bottom=0)
    bottom.set_xlabel("step (rollouts trained on before)")
    bottom.xaxis.get_major_locator().set_params(integer=True)
    for axes in (top, bottom):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False, loc="best")
    figure.savefig(path)


def series(rows: Sequence[Row], name: str) -> list[tuple[int, float]]:
    """(step, value) of every row that has a finite value."""
    return [(row["step"], row[name]) for row in rows if row.get(name) is not None]


def running_mean(values: Sequence[float], window: int) -> list[float]:
    """At each place the mean of up to `window` values that end there."""
    means = []
    total = 0.0
    for index, value in enumerate(values):
        total += value - (values[index - window] if index >= window else 0.0)
        means.append(total / min(index + 1, window))
    return means


def _draw_curve(axes: "Axes", points: list[tuple[int, float]], color: str, label: str) -> None:
    if not points:
        return
    steps, values = [step for step, _ in points], [value for _, value in points]
    if len(points) < SMOOTH_FROM:
        axes.plot(steps, values, color=color, label=label)
        return
    axes.plot(steps, values, color=color, alpha=0.3, lw=1)
    smooth = running_mean(values, len(values) // 10)
    axes.plot(steps, smooth, color=color, lw=2, label=f"{label} (running mean)")


def eval_series(rows: Sequence[Row]) -> dict[str, list[tuple[int, float]]]:
    """(step, mean reward) of every evaluation, by set."""
    found: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        for name, value in eval_sets(row).items():
            found.setdefault(name, []).append((row["step"], value))
    return found
