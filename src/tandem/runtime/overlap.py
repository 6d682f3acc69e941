"""What is different about the stages of a run that samples while it trains."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from tandem.config import Config
from tandem.contracts import Engine, Sampler
from tandem.loop import Devices
from tandem.loop_async import Ahead, BackgroundRunner, Stream
from tandem.rollout import EventLoop


def event_loop(cfg: Config) -> EventLoop:
    """The event loop of a run: in a thread of its own where sampling never rests."""
    return EventLoop(BackgroundRunner() if cfg.sync.asynchronous == "full" else None)


def overlapped(
    cfg: Config,
    sampler: Sampler,
    stream: Stream | None,
    engine: Engine | None,
    devices: Devices,
    events: EventLoop,
    stack: ExitStack,
) -> tuple[Sampler, Devices]:
    """The sampler and the turns of a run, as `--asynchronous` asks for them.

    `stream` is what gives the sampler's rounds where it samples without end.
    """
    if stream is not None:
        return sampler, beside(stream, devices)
    if cfg.sync.asynchronous == "off":
        return sampler, devices
    num_rollout, max_staleness = cfg.data.num_rollout, cfg.sync.max_staleness
    assert num_rollout is not None and max_staleness is not None, "resolve fills them"
    assert engine is not None, "rules refuse half a run that is asynchronous"
    ahead = Ahead(
        sampler,
        version=lambda: engine.stats().version,
        num_rollout=num_rollout,
        max_staleness=max_staleness,
        sampling=devices.sampling,
        stop=events.stop,
    )
    stack.callback(ahead.close)
    return ahead, between(ahead, devices)


def between(ahead: Ahead, devices: Devices) -> Devices:
    """Weights are published, and held-out sets looked at, when no rollout is under way."""

    @contextmanager
    def sampling() -> Iterator[None]:
        with ahead.settled(), devices.sampling():
            yield

    @contextmanager
    def publishing() -> Iterator[None]:
        with ahead.settled(), devices.publishing():
            yield

    return Devices(sampling=sampling, learning=devices.learning, publishing=publishing)


def beside(stream: Stream, devices: Devices) -> Devices:
    """Weights are published under running groups, which pause; all else goes on beside them."""

    @contextmanager
    def sampling() -> Iterator[None]:
        with stream.paused(goes_on=False), devices.sampling():
            pass  # an empty prefix cache, as before every round
        yield

    @contextmanager
    def publishing() -> Iterator[None]:
        with stream.paused(), devices.publishing():
            yield

    return Devices(sampling=sampling, learning=devices.learning, publishing=publishing)
