"""Programs on other hosts of the cluster: an actor there starts, watches and ends them."""

import contextlib
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from tandem.engine.sglang.launch import Spot
from tandem.engine.sglang.members import Runs
from tandem.engine.sglang.process import LoggedProcess
from tandem.errors import EngineError

KILL_S = 10.0


class Hosts:
    """Owns an actor on each host, but for that of the driver, whose processes are its own."""

    def __init__(self, driver: str) -> None:
        self._driver = driver
        self._actors: dict[str, Any] = {}

    def process(self, spot: Spot, process: LoggedProcess) -> Runs:
        """The process, which will run at the spot."""
        if spot.node == self._driver:
            return process
        if spot.node not in self._actors:
            there = NodeAffinitySchedulingStrategy(spot.node, soft=False)
            self._actors[spot.node] = Host.options(  # type: ignore[attr-defined]
                num_cpus=0, scheduling_strategy=there
            ).remote()
        return Far(self._actors[spot.node], spot.host, process)

    def close(self) -> None:
        """Ends the actors, and with them what they started."""
        for actor in self._actors.values():
            ray.kill(actor)


class Far:
    """A process on another host, as `LoggedProcess` is one of this host."""

    def __init__(self, actor: Any, host: str, process: LoggedProcess) -> None:
        self._actor, self._host, self._process = actor, host, process
        self._asked: Any = None  # how the process does, until the answer is here
        self.url = self.meeting = ""

    def start(self) -> None:
        """Starts it, anew if it ran before, on other ports; raises EngineError if its host is
        gone."""
        try:
            self.url, self.meeting = ray.get(self._actor.start.remote(self._process))
        except RayError as error:
            raise EngineError(f"{self._lost()}: {error}") from error

    def death(self) -> str | None:
        """How it ended, with its last lines; None while nothing else is known. Does not wait."""
        if self._asked is None:
            self._asked = self._actor.death.remote(self._process.name)
        told, _ = ray.wait([self._asked], timeout=0)
        if not told:
            return None
        self._asked = None
        try:
            return ray.get(told[0])
        except RayError as error:
            return f"{self._lost()}: {error}"

    def kill(self) -> None:
        """Ends it and everything that it started; nothing if its host is gone."""
        self._asked = None
        with contextlib.suppress(RayError):
            ray.get(self._actor.kill.remote(self._process.name), timeout=KILL_S)

    def _lost(self) -> str:
        return f"{self._process.name} is lost: nothing answers on its host {self._host}"


@ray.remote
class Host:
    """Starts programs, which end with it."""

    def __init__(self) -> None:
        self._processes: dict[str, LoggedProcess] = {}

    def start(self, process: LoggedProcess) -> tuple[str, str]:
        """The address of the program, and where others of its kind meet it."""
        self.kill(process.name)
        process.start()
        self._processes[process.name] = process
        return process.url, process.meeting

    def death(self, name: str) -> str | None:
        """How it ended, with its last lines; None while it runs."""
        process = self._processes.get(name)
        return f"{name} was ended" if process is None else process.death()

    def kill(self, name: str) -> None:
        """Ends it and everything that it started."""
        process = self._processes.pop(name, None)
        if process is not None:
            process.kill()
