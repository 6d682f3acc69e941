"""What every address of the server works with."""

import json
import uuid
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from tandem.server.branches import Session
from tandem.server.desk import Desk
from tandem.server.faults import Refusal
from tandem.server.recorder import Recorder
from tandem.server.settings import Samples, ServerSettings
from tandem.server.words import Words

SESSION_HEADER = "X-Tandem-Session"
SESSION_KEY = "session:"
"""What an API key that names a session begins with: `session:NAME`, or `session:NAME:API_KEY`."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Service:
    """The engine, and everything that stands between it and a client."""

    engine: Samples
    words: Words
    desk: Desk
    recorder: Recorder
    settings: ServerSettings

    def session_of(self, request: web.Request, user: str | None = None) -> Session | None:
        """The session that a request belongs to, None for one that nobody records.

        A header or an API key that names a session opens it; the `user` of a request only finds
        one, since clients use it for other things too.
        """
        name = request.headers.get(SESSION_HEADER) or named_in_key(bearer(request))
        if name:
            return self.recorder.find(name)
        return self.recorder.get(user) if user and user in self.recorder else None


def bearer(request: web.Request) -> str:
    """The API key that a request carries, empty if it has none."""
    scheme, _, key = request.headers.get("Authorization", "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else ""


def named_in_key(key: str) -> str | None:
    """The session that an API key names, or None."""
    return key.removeprefix(SESSION_KEY).split(":")[0] if key.startswith(SESSION_KEY) else None


def secret_in_key(key: str) -> str:
    """What of an API key proves that the client may ask."""
    return key.removeprefix(SESSION_KEY).partition(":")[2] if named_in_key(key) else key


async def read_json(request: web.Request) -> Any:
    """The body as JSON, {} for an empty one; raises Refusal."""
    raw = await request.read()
    if not raw.strip():
        return {}
    try:
        return json.loads(raw)
    except ValueError as error:
        raise Refusal(f"the body is no JSON: {error}") from error


def new_id() -> str:
    """An id that no other request has."""
    return uuid.uuid4().hex
