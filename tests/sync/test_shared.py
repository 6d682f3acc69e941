"""A weight update is believed only with its proofs."""

from dataclasses import replace

import numpy as np
import pytest

from tandem.errors import SyncError
from tandem.sync import SharedSync
from tandem.types import Canary, EngineStats, Weights

TOKENS_T = np.arange(5, dtype=np.int32)
SENT = Weights(
    version=4,
    named=(),
    is_shared=True,
    digests={"embed": 17, "head": 23},
    canary=Canary(tokens_T=TOKENS_T, read=np.array([0, -1, -2, -1, -3], np.float32).copy),
)


class Holder:
    """An engine that holds what it is told to hold."""

    def __init__(self, *, takes_version=True, digests=None, drift=0.0) -> None:
        self._takes_version = takes_version
        self._digests = digests or dict(SENT.digests)
        self._drift = drift
        self.version = 0

    def update(self, weights):
        if self._takes_version:
            self.version = weights.version

    def stats(self):
        numbers = dict.fromkeys(EngineStats.__dataclass_fields__, 0)
        return EngineStats(**{**numbers, "version": self.version, "is_asleep": False})

    def state_digest(self, *, as_stored=False):
        assert as_stored
        return self._digests

    def canary(self, tokens_T):
        assert (tokens_T == TOKENS_T).all()
        return SENT.canary.logprobs_T + np.array([0, 1, -1, 1, -1]) * self._drift


def publish(*engines, dtype="float32", weights=SENT):
    return SharedSync(engines, dtype=dtype).publish(weights)


def test_engines_that_hold_what_was_sent_are_believed():
    metrics = publish(Holder(), Holder(drift=1e-5))
    assert metrics["perf/update_weights_time"] >= metrics["perf/update_weights_check_time"] >= 0


@pytest.mark.parametrize(
    ("holder", "said"),
    [
        (Holder(takes_version=False), "reports weight version 0, not 4"),
        (Holder(digests={"embed": 17, "head": 24}), "other bytes in 1 of 2 tensors, first head"),
        (Holder(digests={"embed": 17}), "other bytes in 1 of 2 tensors, first head"),
        (Holder(drift=0.5), "differ by 0.5"),
        (Holder(drift=float("nan")), "differ by nan"),
    ],
)
def test_an_engine_that_missed_an_update_is_named(holder, said):
    with pytest.raises(SyncError, match=said) as caught:
        publish(Holder(), holder)
    assert "engine 1" in str(caught.value) and "engine 0" not in str(caught.value)


def test_the_canary_allows_what_precision_explains():
    publish(Holder(drift=0.05), dtype="bfloat16")
    with pytest.raises(SyncError):
        publish(Holder(drift=0.05), dtype="float32")


def test_an_update_without_proofs_is_judged_by_its_version():
    publish(Holder(digests={}, drift=9.0), weights=replace(SENT, digests=None, canary=None))
