"""Digests of tensors that are held one after the other, never all of them."""

from collections.abc import Iterator

from torch import Tensor

from tandem.carriers.buckets import Named, grouped
from tandem.kernels.digest import start_digests
from tandem.types import Digests

AT_ONCE = 2**27
"""Bytes of tensors that are held to be digested together: a launch for each of them would take
longer than reading it."""


class Digested:
    """Tensors on their way, digested as they pass; they pass once."""

    def __init__(self, named: Named) -> None:
        self._groups = grouped(named, AT_ONCE)
        self._digests: list[Digests] = []
        self._is_over = False

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        for group in self._groups:
            self._digests.append(start_digests(group))
            yield from group
        self._is_over = True

    def digests(self) -> dict[str, int]:
        """Of all tensors, once all have passed."""
        assert self._is_over, "tensors have digests when all of them were walked"
        return {name: value for some in self._digests for name, value in some.items()}


def digests_of(named: Named) -> dict[str, int]:
    """The digest of every tensor by its name; all of them are taken."""
    walk = Digested(named)
    for _ in walk:
        pass
    return walk.digests()
