"""Whose turn it is on a device that the trainer and its engine share."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from tandem.contracts import Engine
from tandem.loop import Devices


def take_turns(engine: Engine) -> Devices:
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
