"""The server: an HTTP door to an engine that runs on the same event loop."""

import hmac
from collections.abc import Awaitable, Callable
from functools import partial

from aiohttp import web

from tandem.errors import ResourceError
from tandem.server import control
from tandem.server.desk import Desk
from tandem.server.faults import Handler, Refusal, answer_faults
from tandem.server.generate import generate
from tandem.server.openai import chat, completions, models
from tandem.server.recorder import Recorder
from tandem.server.service import Service, bearer, secret_in_key
from tandem.server.settings import Samples, ServerSettings, Tokenizer
from tandem.server.words import Words

OPEN_TO_ALL = ("/health",)
"""Addresses that are answered without an API key."""

Answers = Callable[[Service, web.Request], Awaitable[web.StreamResponse]]

ADDRESSES: tuple[tuple[str, str, Answers], ...] = (
    ("GET", "/health", control.health),
    ("GET", "/health_generate", control.health_generate),
    ("POST", "/generate", generate),
    ("POST", "/abort_request", control.abort_request),
    ("GET", "/model_info", control.model_info),
    ("GET", "/get_model_info", control.model_info),
    ("GET", "/server_info", control.server_info),
    ("GET", "/get_server_info", control.server_info),
    ("GET", "/v1/loads", control.loads),
    ("GET", "/workers", control.workers),
    ("GET", "/flush_cache", control.flush_cache),
    ("POST", "/flush_cache", control.flush_cache),
    ("GET", "/v1/models", models),
    ("POST", "/v1/completions", completions),
    ("POST", "/v1/chat/completions", chat),
    ("PUT", "/sessions/{name}", control.open_session),
    ("GET", "/sessions/{name}", control.read_session),
    ("DELETE", "/sessions/{name}", control.close_session),
)


class Server:
    """Answers HTTP while its event loop runs; what sessions wrote is in `recorder`."""

    def __init__(
        self,
        engine: Samples,
        tokenizer: Tokenizer,
        settings: ServerSettings,
        recorder: Recorder | None = None,
    ) -> None:
        self.recorder = recorder or Recorder()
        self._settings = settings
        words = Words(tokenizer)
        self._service = Service(
            engine=engine,
            words=words,
            desk=Desk(engine, words, settings),
            recorder=self.recorder,
            settings=settings,
        )
        self._runner: web.AppRunner | None = None
        self.url = ""

    async def start(self) -> str:
        """The address it listens at, `http://host:port`; ResourceError if it is taken."""
        # a client that went away must not keep the engine busy
        runner = web.AppRunner(
            self.app(), handler_cancellation=True, access_log=None, shutdown_timeout=1.0
        )
        await runner.setup()
        settings = self._settings
        try:
            await web.TCPSite(runner, settings.host, settings.port).start()
        except OSError as error:
            await runner.cleanup()
            raise ResourceError(
                f"cannot listen at {settings.host}:{settings.port}: {error.strerror}; choose "
                "another port, or 0 for any that is free"
            ) from error
        self._runner = runner
        host, port = runner.addresses[0][:2]
        self.url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        return self.url

    async def close(self) -> None:
        """Stops listening and ends what is being answered; nothing if it does not listen."""
        runner, self._runner = self._runner, None
        if runner is not None:
            await self._service.desk.abort()
            await runner.cleanup()

    def app(self) -> web.Application:
        """The addresses as an aiohttp application."""
        app = web.Application(
            client_max_size=self._settings.max_body_bytes,
            middlewares=[answer_faults, _key_check(self._settings.api_key)],
        )
        for method, path, answer in ADDRESSES:
            app.router.add_route(method, path, partial(answer, self._service))
        return app


def _key_check(api_key: str | None):
    """A middleware that lets nobody in without the key, if there is one."""

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        if api_key is not None and request.path not in OPEN_TO_ALL:
            given = secret_in_key(bearer(request))
            if not hmac.compare_digest(given.encode(), api_key.encode()):
                raise Refusal("the API key is missing or wrong", status=401, code="invalid_api_key")
        return await handler(request)

    return check
