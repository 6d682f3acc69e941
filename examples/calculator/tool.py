"""Arithmetic with a calculator: the model writes an expression and `=`, the tool writes its value.

--custom-generate-function-path examples.calculator.tool.solve
"""

from functools import cache
from pathlib import Path
from typing import Any

from tandem.hooks import Sample
from tandem.rollout.sandbox import Sandbox
from tandem.rollout.turns import Limits, converse

PROGRAM = Path(__file__).with_name("calculator.py")
CALL = "="
LIMITS = Limits(turns=2, seconds=60)


@cache
def sandbox() -> Sandbox:
    """The calculator's processes, started when the first call comes."""
    return Sandbox(PROGRAM, num_processes=2, limit_s=2.0, memory_bytes=256 << 20)


class Calculator:
    """Replies to a turn that ends in `=`; any other turn is the answer."""

    def __init__(self) -> None:
        self.num_calls = 0
        self.answer: str | None = None

    async def reply(self, text: str) -> str | None:
        """The value and a new line; None when the model gave its answer."""
        if not text.endswith(CALL):
            self.answer = text.strip()
            return None
        self.num_calls += 1
        said = await sandbox().call(text.removesuffix(CALL))
        return f"{said.value or 'error'}\n"


async def solve(args: Any, sample: Sample, sampling_params: dict[str, Any]) -> Sample:
    """A call and an answer; the reward is 1 for the right answer, whoever computed it."""
    worlds: list[Calculator] = []

    def new_world() -> Calculator:
        worlds.append(Calculator())
        return worlds[-1]

    params = {**sampling_params, "stop": [CALL]}
    await converse(args, sample, params, new_world, LIMITS)
    if sample.status != Sample.Status.ABORTED:
        sample.reward = float(worlds[-1].answer == sample.label)
        sample.metadata["num_calls"] = worlds[-1].num_calls
    return sample
