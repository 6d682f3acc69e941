"""The sending side of a weight update, where the trainer is in another process than the fleet."""

from collections.abc import Sequence

from tandem.config import Config
from tandem.engine.sglang.launch import Place, carrier_of
from tandem.engine.sglang.line import Line
from tandem.engine.sglang.members import Member
from tandem.engine.sglang.server import Address, Server
from tandem.types import Weights


class Outlet:
    """Owns connections to servers, and what carries weights there."""

    def __init__(self, cfg: Config, place: Place, addresses: Sequence[Address]) -> None:
        self._line = Line()
        members = [Member(server, None) for server in self._servers(addresses)]
        self._carrier = carrier_of(cfg, self._line, place, members)

    def send(self, addresses: Sequence[Address], weights: Weights) -> None:
        """Blocks until every server has the weights; raises EngineError. Servers are paused."""
        self._carrier.send(self._servers(addresses), weights)

    def _servers(self, addresses: Sequence[Address]) -> list[Server]:
        return [
            Server(self._line, one.url, name=one.name, num_ranks=one.num_ranks) for one in addresses
        ]

    def close(self) -> None:
        """Leaves groups and closes the connections."""
        self._carrier.close()
        self._line.close()
