"""A program with a log of its own, which ends with the run that started it."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tandem.engine.sglang.members import Runs
from tandem.engine.sglang.ports import MEETING, Ports

TETHER = Path(__file__).with_name("tether.py")
LAST_LINES, LINE_WIDTH = 25, 300
NOISE = ("Ignore import error", "    [--")
"""In lines of a log that tell nothing about a death, as do those of how a program is used."""


class LoggedProcess:
    """Runs `words(ports)` in a process group of its own, its output in `log`."""

    def __init__(
        self,
        name: str,
        words: Callable[[Ports], Sequence[str]],
        log: Path,
        *,
        environment: Mapping[str, str] | None = None,
        host: str = "127.0.0.1",
    ) -> None:
        """It listens on port 1 of the block of ports that it is given."""
        self.name, self.log, self.url, self.meeting = name, log, "", ""
        self._words, self._environment, self._host = words, dict(environment or {}), host
        self._process: subprocess.Popen[bytes] | None = None
        self._ports: Ports | None = None
        self._scratch: str | None = None

    def start(self) -> None:
        """Starts it, anew if it ran before, on other ports."""
        self.kill()
        self._ports = Ports(host=self._host)
        self.url = f"http://{self._host}:{self._ports[1]}"
        self.meeting = f"{self._host}:{self._ports[MEETING]}"
        self._scratch = tempfile.mkdtemp(prefix="tandem-")  # short: sockets lie in it
        self.log.parent.mkdir(parents=True, exist_ok=True)
        words = list(self._words(self._ports))
        with self.log.open("ab") as log:
            log.write(f"\n$ {' '.join(words)}\n".encode())
            log.flush()
            self._process = subprocess.Popen(
                [sys.executable, str(TETHER), str(os.getpid()), *words],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=os.environ | {"TMPDIR": self._scratch, **self._environment},
            )

    @property
    def pid(self) -> int | None:
        """Of the process group, while there is one."""
        return None if self._process is None else self._process.pid

    def death(self) -> str | None:
        """How it ended, with its last lines; None while it runs."""
        if self._process is None:
            return f"{self.name} was ended"
        code = self._process.poll()
        if code is None:
            return None
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        return f"{self.name} ended with {how}. The end of {self.log}:\n{self.last_lines()}"

    def last_lines(self) -> str:
        """The end of its log, without lines that are always there."""
        lines = self.log.read_text(errors="replace").splitlines() if self.log.exists() else []
        told = [line[:LINE_WIDTH] for line in lines if not any(word in line for word in NOISE)]
        return "\n".join(told[-LAST_LINES:])

    def kill(self) -> None:
        """Ends it with everything it started; nothing if it is gone."""
        process, self._process = self._process, None
        if process is not None:
            with contextlib.suppress(ProcessLookupError):  # all of them are gone
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if self._ports is not None:
            self._ports.close()
            self._ports = None
        if self._scratch is not None:
            shutil.rmtree(self._scratch, ignore_errors=True)
            self._scratch = None


class Spanning:
    """The processes of one server on several hosts: the first answers, and none lives alone."""

    def __init__(self, first: Runs, others: Callable[[str], Sequence[Runs]]) -> None:
        """`others(meeting)`: those on the other hosts, which meet the first at this address."""
        self._first, self._make_others = first, others
        self._others: Sequence[Runs] = ()

    @property
    def url(self) -> str:
        return self._first.url

    @property
    def meeting(self) -> str:
        return self._first.meeting

    def start(self) -> None:
        """Starts all of them, anew if they ran before."""
        self.kill()
        self._first.start()
        self._others = self._make_others(self._first.meeting)
        for one in self._others:
            one.start()

    def death(self) -> str | None:
        """How the first of them that ended did; None while all run."""
        deaths = (one.death() for one in (self._first, *self._others))
        return next((death for death in deaths if death is not None), None)

    def kill(self) -> None:
        """Ends all of them."""
        for one in (self._first, *self._others):
            one.kill()
