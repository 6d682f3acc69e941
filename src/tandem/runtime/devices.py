"""Whose turn it is on a device that the trainer and its engine share."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from tandem.engine.torch.engine import TorchEngine
from tandem.loop import Devices


def start_afresh(engine: TorchEngine) -> Devices:
    """The engine forgets cached prefixes before each round.

    What an evaluation left there would change the rounding of the rollout that follows it, and a
    run that resumes between the two has no such prefixes.
    """

    @contextmanager
    def sampling() -> Iterator[None]:
        engine.forget()
        yield

    return Devices(sampling=sampling)


def take_turns(engine: TorchEngine) -> Devices:
    """The engine's cache is there only while it samples; the trainer has that memory otherwise.

    A cache that sleeps keeps its address, so CUDA graphs stay; what it held is forgotten. Used on
    a GPU, where both together would not fit: mapping 40 GiB takes milliseconds.
    """

    @contextmanager
    def sampling() -> Iterator[None]:
        torch.cuda.empty_cache()  # what the trainer holds and does not use
        engine.wake()
        try:
            yield
        finally:
            if not engine.stats().num_running:
                engine.sleep()

    return Devices(sampling=sampling)
