"""What a person sees while a run goes on: a live table in a terminal, plain lines elsewhere."""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from tandem.observe.log import get_logger, log_console

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.progress import Progress, TaskID
    from rich.table import Table

NUM_SHOWN_STEPS = 12
PLAIN_PROGRESS_INTERVAL_S = 30.0
"""Without a terminal, work that is going on is mentioned this often."""

NO_VALUE = "-"

Row = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Column:
    """A number of a step: its title, and its text or None when the step has none."""

    title: str
    text: Callable[[Row], str | None]


def open_display(
    mode: Literal["auto", "live", "plain", "off"], num_steps: int
) -> "LiveDisplay | PlainDisplay":
    """The display for a mode; `auto` is live where log lines go to a terminal."""
    console = log_console()
    if mode == "off":
        # a logger of its own without a handler: warnings still go to the log
        return PlainDisplay(num_steps, logger=logging.Logger("off", logging.CRITICAL))
    if mode == "live" or (mode == "auto" and console is not None and console.is_terminal):
        return LiveDisplay(num_steps, console)
    return PlainDisplay(num_steps)


class PlainDisplay:
    """One log line for each step, and one now and then for work that takes long."""

    def __init__(
        self,
        num_steps: int,
        *,
        logger: logging.Logger | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._num_steps = num_steps
        self._logger = logger or get_logger("run")
        self._clock = clock
        self._said_s = clock()

    def progress(self, work: str, done: int, total: int) -> None:
        """Shows that `done` of `total` pieces of the work are done."""
        if done < total and self._clock() - self._said_s >= PLAIN_PROGRESS_INTERVAL_S:
            self._said_s = self._clock()
            self._logger.info("%s %d of %d", work, done, total)

    def step(self, row: Row) -> None:
        """Shows a step, or shows it anew when more is known about it."""
        self._said_s = self._clock()
        self._logger.info("%s", step_line(row, self._num_steps))

    def close(self) -> None:
        pass


class LiveDisplay:
    """Progress bars above a table of the last steps, drawn in place below the log lines."""

    def __init__(self, num_steps: int, console: "Console | None" = None) -> None:
        from rich.live import Live

        self._num_steps = num_steps
        self._rows: dict[int, Row] = {}
        self._bars = _make_bars(console)
        self._tasks: dict[str, TaskID] = {}
        self._done: dict[str, int] = {}
        self._live = Live(
            get_renderable=self.picture, console=console, refresh_per_second=4, transient=False
        )
        self._live.start()

    def progress(self, work: str, done: int, total: int) -> None:
        if work not in self._tasks:
            self._tasks[work] = self._bars.add_task(work, total=total)
        elif done < self._done[work]:
            self._bars.reset(self._tasks[work])  # the next round of the same work
        self._done[work] = done
        self._bars.update(self._tasks[work], completed=done, total=total)

    def step(self, row: Row) -> None:
        self._rows[row["step"]] = row
        for step in sorted(self._rows)[:-NUM_SHOWN_STEPS]:
            del self._rows[step]

    def close(self) -> None:
        for task in self._tasks.values():
            self._bars.remove_task(task)
        self._tasks = {}
        self._live.stop()

    def picture(self) -> "RenderableType":
        """What is drawn now."""
        from rich.console import Group

        # rich draws from a thread of its own: it gets a snapshot
        rows = list(self._rows.values())
        return Group(step_table(rows, self._num_steps), self._bars)


def step_line(row: Row, num_steps: int) -> str:
    """One readable line about a step."""
    parts = [f"step {_place(row, num_steps)}"]
    for column in COLUMNS:
        text = column.text(row)
        if text is not None:
            parts.append(f"{column.title} {text}")
    return " | ".join(parts)


def step_table(rows: list[Row], num_steps: int) -> "Table":
    """The steps as a table; a column that no step has is left out."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("step", justify="right", no_wrap=True)
    shown = [column for column in COLUMNS if any(column.text(row) for row in rows)]
    for column in shown:
        table.add_column(column.title, justify="right", no_wrap=True)
    for row in rows:
        texts = [column.text(row) or NO_VALUE for column in shown]
        table.add_row(_place(row, num_steps), *texts)
    return table


def eval_sets(row: Row) -> dict[str, float]:
    """The mean reward of every held-out set in a row, by name."""
    found = {}
    for key, value in row.items():
        name = key.removeprefix("eval/")
        if name == key or name == "step" or "/" in name or value is None:
            continue
        if any(f"eval/{name}{ending}" in row for ending in ("-missing_verdicts", "-pass@1")):
            found[name] = float(value)
    return found


def short(number: float) -> str:
    """A number in five characters or so: 0.412, 12.3, 1.0k, 2.5e-05."""
    size = abs(number)
    if size and size < 1e-3:
        return f"{number:.1e}"
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if size >= limit:
            return f"{number / limit:.1f}{unit}"
    return f"{number:.3f}" if size < 10 else f"{number:.1f}"


def _number(title: str, *names: str, unit: str = "") -> Column:
    """A column that shows the first of the named metrics that a step has."""

    def text(row: Row) -> str | None:
        for name in names:
            if name in row:
                value = row[name]
                return "nan" if value is None else short(value) + unit
        return None

    return Column(title=title, text=text)


def _percent(title: str, name: str) -> Column:
    def text(row: Row) -> str | None:
        value = row.get(name)
        return None if value is None else f"{100 * value:.0f}%"

    return Column(title=title, text=text)


def _evaluation(row: Row) -> str | None:
    sets = eval_sets(row)
    return ", ".join(f"{name} {short(value)}" for name, value in sets.items()) or None


COLUMNS = (
    _number("reward", "rollout/raw_reward"),
    Column(title="eval", text=_evaluation),
    _number("len", "rollout/response_len/mean"),
    _percent("cut", "rollout/truncated_ratio"),
    _number("loss", "train/loss"),
    _number("grad", "train/grad_norm"),
    _number("kl", "train/kl_loss", "train/ppo_kl"),
    _number("entropy", "train/entropy_loss"),
    _number("tok/s", "perf/tokens_per_gpu_per_sec"),
    _number("sample", "perf/rollout_time", unit="s"),
    _number("train", "perf/train_time", unit="s"),
    _number("total", "perf/step_time", unit="s"),
)
"""What a step shows, in order."""


def _place(row: Row, num_steps: int) -> str:
    return f"{row['step']}/{num_steps}" if num_steps else str(row["step"])


def _make_bars(console: "Console | None") -> "Progress":
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    return Progress(
        TextColumn("{task.description:<12}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
    )
