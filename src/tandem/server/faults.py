"""Requests that are refused, and how a client reads why: the error object that OpenAI's API has."""

import logging
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

from tandem.errors import TandemError

log = logging.getLogger(__name__)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

TYPES = {400: "invalid_request_error", 401: "authentication_error", 404: "not_found_error"}


class Refusal(Exception):
    """A request that cannot be answered as it was asked; it harms nobody else."""

    def __init__(
        self, message: str, *, status: int = 400, param: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.message, self.status, self.param, self.code = message, status, param, code


def error_body(refusal: Refusal) -> dict[str, Any]:
    """`{"error": {"message", "type", "param", "code"}}`, the same from every address."""
    kind = TYPES.get(refusal.status, "server_error" if refusal.status >= 500 else TYPES[400])
    return {
        "error": {
            "message": refusal.message,
            "type": kind,
            "param": refusal.param,
            "code": refusal.code,
        }
    }


@web.middleware
async def answer_faults(request: web.Request, handler: Handler) -> web.StreamResponse:
    """The handler's answer, or the fault as a JSON object with its HTTP status.

    What a client did wrong is said to the client; a fault of ours is logged and named by its type.
    """
    try:
        return await handler(request)
    except Refusal as refusal:
        return refused(refusal)
    except web.HTTPException as error:
        if error.status < 400:
            raise
        return refused(Refusal(f"{request.path}: {error.reason}", status=error.status))
    except TandemError as error:
        return refused(Refusal(str(error), status=503))
    except Exception as error:
        log.exception("a request to %s raised", request.path)
        message = f"the server failed with {type(error).__name__}; its log says more"
        return refused(Refusal(message, status=500))


def refused(refusal: Refusal) -> web.Response:
    """The refusal as an HTTP response."""
    return web.json_response(error_body(refusal), status=refusal.status)
