"""An agent that speaks OpenAI's API, as a generate function: trained without being rewritten."""

import asyncio
import copy
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import numpy as np

from tandem.errors import EngineError
from tandem.hooks.asking import LINE, Line, sampling_of
from tandem.hooks.view import STATUS_OF, DialectSample
from tandem.server.app import Server
from tandem.server.branches import Branch, Pins, Way
from tandem.server.recorder import written
from tandem.server.service import SESSION_KEY
from tandem.server.settings import ServerSettings
from tandem.types import Completion, Ending, EngineStats, Request, SampleKey

Agent = Callable[[str, str, Any], Awaitable[Any]]
"""`async agent(base_url, api_key, sample)`: does the sample's task by talking to the endpoint.

What it returns is the reward (a number or a dictionary); None leaves that to the run's own.
"""

MODEL = "policy"
_BRANCHES = (1 << 31) - 1


class TrainedAgent:
    """A generate function (`--custom-generate-function-path`) that lets an agent write samples.

        generate = TrainedAgent(play)

    Every call is a session of its own at one server, which starts with the first call and lives as
    long as the event loop. What the agent's requests ask for as to temperature, top-p, top-k and
    seed gives way to the rollout's settings, and all its replies together may have as many tokens
    as a response. A session in which a later prompt does not begin with the earlier tokens gives
    several samples, which share the reward. When the round ends early the agent is cancelled.
    """

    def __init__(self, agent: Agent, *, host: str = "127.0.0.1", port: int = 0) -> None:
        self._agent, self._host, self._port = agent, host, port
        self._loop: asyncio.AbstractEventLoop | None = None
        self._server: asyncio.Task[Server] | None = None
        self._keeper: asyncio.Task[None] | None = None

    async def __call__(
        self, args: Any, sample: DialectSample, sampling_params: Mapping[str, Any]
    ) -> DialectSample | list[DialectSample]:
        """The sample with everything that was written; a list where there are several."""
        line = LINE.get()
        server = await self._running(line)
        name = uuid.uuid4().hex
        is_cut_off = asyncio.Event()
        sampling = sampling_of(sampling_params)
        prompt_T = np.asarray(sample.tokens[: len(sample.tokens) - sample.response_length])
        session = server.recorder.open(
            name,
            key=SampleKey(seed=0, prompt=0, sample=0),
            prompt_T=prompt_T,
            pins=Pins(
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                top_k=sampling.top_k,
                max_new_tokens=sampling.max_new_tokens,
            ),
            way=_way_through(line, sample, is_cut_off),
        )
        try:
            work = self._agent(f"{server.url}/v1", SESSION_KEY + name, sample)
            reward = await _unless(is_cut_off, work)
        finally:
            server.recorder.close(name)
        if is_cut_off.is_set():
            return _restarted(sample, prompt_T)
        views = [_view(sample, branch, line) for branch in written(session)]
        if not views:
            raise EngineError("the agent ended without having asked the model for anything")
        for view in views:
            view.reward = reward
        return views[0] if len(views) == 1 else views

    async def _running(self, line: Line) -> Server:
        """The server of this event loop, started if there is none."""
        loop = asyncio.get_running_loop()
        if self._loop is not loop or self._server is None:
            self._loop = loop
            self._server = loop.create_task(self._start(line))
        return await asyncio.shield(self._server)

    async def _start(self, line: Line) -> Server:
        settings = ServerSettings(
            model=MODEL, max_context=1 << 30, host=self._host, port=self._port
        )
        server = Server(NoEngine(), line.tokenizer, settings)
        await server.start()
        self._keeper = asyncio.create_task(_kept(server))
        return server


class NoEngine:
    """Stands where sessions bring their own way to an engine: answers nobody else."""

    def add(self, request: Request) -> Awaitable[Completion]:
        """Raises EngineError."""
        raise EngineError(
            "only sessions of a rollout are answered here: use the API key that the agent was given"
        )

    async def abort(self, ids: Sequence[str] | None = None) -> None:
        """Nothing: a session's request ends when its task is cancelled."""

    def stats(self) -> EngineStats:
        """Of an engine that does nothing."""
        return EngineStats(version=-1)

    def canary(self, tokens_T: np.ndarray) -> np.ndarray:
        """Raises EngineError."""
        raise EngineError("log-probs of a prompt are not to be had here")


def _way_through(line: Line, sample: DialectSample, is_cut_off: asyncio.Event) -> Way:
    """Takes a session's requests where its generate function's go."""

    async def ask(request: Request) -> Completion:
        branch = request.key.seed & _BRANCHES  # 0 for the task's own sequence
        completion = await line.ask(
            request.tokens_T.tolist(), request.sampling, sample=sample, branch=branch
        )
        if completion.ending is Ending.ABORT:
            is_cut_off.set()
        return completion

    return ask


async def _unless(is_cut_off: asyncio.Event, work: Awaitable[Any]) -> Any:
    """What the work gives; None once the round has ended, and then the work is cancelled."""
    working = asyncio.ensure_future(work)
    waiting = asyncio.create_task(is_cut_off.wait())
    try:
        await asyncio.wait({working, waiting}, return_when=asyncio.FIRST_COMPLETED)
        return None if is_cut_off.is_set() else working.result()
    finally:
        for task in (working, waiting):
            task.cancel()
        await asyncio.gather(working, waiting, return_exceptions=True)


async def _kept(server: Server) -> None:
    """Holds the server until its event loop closes."""
    try:
        await asyncio.Event().wait()
    finally:
        await server.close()


def _restarted(sample: DialectSample, prompt_T: np.ndarray) -> DialectSample:
    """The sample as one that has to begin again: where an agent was cannot be gone back to."""
    view = copy.copy(sample)
    view.tokens, view.response, view.response_length = prompt_T.tolist(), "", 0
    view.loss_mask = view.rollout_log_probs = None
    view.status = STATUS_OF[Ending.ABORT]
    return view


def _view(sample: DialectSample, branch: Branch, line: Line) -> DialectSample:
    """A copy of the sample that holds a recorded sequence."""
    start, view = branch.prompt_length, copy.copy(sample)
    view.tokens = branch.tokens_T.tolist()
    view.response_length = branch.num_tokens - start
    view.response = line.tokenizer.decode(view.tokens[start:])
    view.loss_mask = branch.sampled_T[start:].astype(int).tolist()
    view.rollout_log_probs = branch.logprobs_T[start:].tolist()
    versions = dict.fromkeys(branch.version_T[branch.sampled_T].tolist())
    view.weight_versions = [str(version) for version in versions]
    view.status = STATUS_OF[branch.ending]
    view.metadata = {**sample.metadata, "recorded": branch.record}
    return view
