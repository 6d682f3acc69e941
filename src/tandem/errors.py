"""The faults of the world that a user can act on; a fault of ours is an `assert`.

Every message says what happened, what was wanted and what to do.
"""

from collections.abc import Sequence


class TandemError(Exception):
    """Any fault that is reported as one clear message, without a traceback."""


class ConfigError(TandemError):
    """One or more settings cannot work; every failure found is reported together."""

    def __init__(self, failures: str | Sequence[str]) -> None:
        self.failures = (failures,) if isinstance(failures, str) else tuple(failures)
        super().__init__("\n".join(self.failures))

    def __reduce__(self):
        return type(self), (self.failures,)


class DataError(TandemError):
    """A data set holds something that cannot be a prompt."""


class CheckpointError(TandemError):
    """A checkpoint is absent, incomplete, or of another model."""


class EngineError(TandemError):
    """An inference engine cannot do what was asked, or died."""


class RewardError(TandemError):
    """A reward function or its service cannot work at all (one missing verdict is no error)."""


class HookError(TandemError):
    """A user's function is missing, has the wrong signature, or raised."""


class SyncError(TandemError):
    """Weights did not arrive everywhere as they were sent."""


class ResourceError(TandemError):
    """The work does not fit: memory, devices, ports, processes."""


class Stopped(Exception):
    """Somebody asked the run to end (SIGTERM, Ctrl-C): it saves what it has learnt and leaves."""
