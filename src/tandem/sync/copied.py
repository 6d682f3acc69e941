"""Weights that engines of the same process copy into tensors of their own."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from tandem.contracts import Engine
from tandem.kernels.digest import digest_all
from tandem.sync.shared import SharedSync
from tandem.types import Weights


class CopiedSync:
    """Publishes to engines that go on sampling while the trainer moves its own tensors."""

    def __init__(self, engines: Sequence[Engine], *, dtype: str) -> None:
        self._sync = SharedSync(engines, dtype=dtype)

    def publish(self, weights: Weights) -> Mapping[str, float]:
        """Seconds of the update and of its check; raises SyncError naming engines that missed it.

        The digests that must arrive are those of the tensors as they are sent.
        """
        named = list(weights.named)
        digests = None if weights.digests is None else digest_all(named)
        return self._sync.publish(replace(weights, named=named, is_shared=False, digests=digests))
