"""An HTTP door to any engine: SGLang's and OpenAI's addresses, every sampled token recorded."""

from tandem.server.app import Server
from tandem.server.branches import Pins, Session
from tandem.server.hook import TrainedAgent
from tandem.server.recorder import Recorder
from tandem.server.settings import ServerSettings

__all__ = ["Pins", "Recorder", "Server", "ServerSettings", "Session", "TrainedAgent"]
