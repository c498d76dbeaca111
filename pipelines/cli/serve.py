"""The champion behind HTTP on 127.0.0.1: `enigma serve`.

    curl -s 127.0.0.1:8000/generate -d '{"prompt": "却说曹操"}' -H 'content-type: application/json'

After a promotion or rollback the new champion is loaded beside the old one within seconds,
and takes over between two requests, so none is lost. `/health` says which version answers and
which one should, `/ready` whether another request would be taken, `/metrics` is for Prometheus.
"""

import asyncio
import logging
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field, model_validator
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from enigma.generation import LIMITS, MAX_PROMPT_CHARACTERS, Sampling
from pipelines.base.errors import UserError
from pipelines.cli.answering import BusyError, LeftError, Server
from pipelines.cli.service_metrics import CONTENT_TYPE, ServiceMetrics
from pipelines.registry.names import LM

HOST = "127.0.0.1"
GENERATE = "/generate"
# A text that takes longer is ended when the server is asked to stop.
SHUTDOWN_GRACE_S = 5
LEFT = 499

logger = logging.getLogger(__name__)


def _within(name: str, **more: Any) -> Any:
    low, high = LIMITS[name]
    return Field(ge=low, le=high, **more)


class GenerateRequest(BaseModel):
    """A request; its options and their bounds are those of `enigma generate`."""

    model_config = ConfigDict(extra="forbid", strict=True)

    prompt: Annotated[str, Field(max_length=MAX_PROMPT_CHARACTERS)]
    max_new_tokens: Annotated[int, _within("max_new_tokens")] = Sampling.max_new_tokens
    temperature: Annotated[float, _within("temperature", strict=False)] = Sampling.temperature
    top_k: Annotated[int, _within("top_k")] = Sampling.top_k
    top_p: Annotated[float, _within("top_p", strict=False)] = Sampling.top_p
    repetition_penalty: Annotated[float, _within("repetition_penalty", strict=False)] = (
        Sampling.repetition_penalty
    )
    seed: Annotated[int, _within("seed")] = Sampling.seed

    @model_validator(mode="after")
    def _can_be_sampled(self) -> "GenerateRequest":
        self.sampling()
        return self

    def sampling(self) -> Sampling:
        """Return how tokens are drawn."""
        return Sampling(**self.model_dump(exclude={"prompt"}))


class GenerateReply(BaseModel):
    """The text, and the version that wrote it."""

    text: str
    model: str
    version: str


class CountAnswers:
    """Middleware that counts every answer to a request for a text, whoever made the answer.

    Args:
        app: What answers. An error of it that nobody expected is logged and answered with 500.
        metrics: Where the answers are counted.
    """

    def __init__(self, app: ASGIApp, metrics: ServiceMetrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and count the status of its answer."""
        if scope["type"] != "http" or scope["path"] != GENERATE:
            await self._app(scope, receive, send)
            return
        began_s = time.monotonic()
        status = 500

        async def noted(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            await self._app(scope, receive, noted)
        except Exception:
            logger.exception("a text could not be generated")
            failed = JSONResponse({"error": "the text could not be generated"}, status_code=500)
            await failed(scope, receive, noted)
        finally:
            self._metrics.answered(status, time.monotonic() - began_s)


def build_app(server: Server) -> FastAPI:
    """Return the HTTP interface of a server."""

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        server.start()
        yield
        server.stop()

    app = FastAPI(title="Enigma", lifespan=lifespan)
    # A web page must not reach a local server under the page's own name (DNS rebinding).
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"])
    # Outside all else: a request that is refused is counted too.
    app.add_middleware(CountAnswers, metrics=server.metrics)
    # Coroutines: they need no thread of the pool, and answer while a text is generated.
    _add_status(app, server)

    @app.post(GENERATE, response_model=GenerateReply)
    async def answer(body: GenerateRequest, request: Request) -> Response:
        return await _answer(server, body, request)

    @app.exception_handler(RequestValidationError)
    async def refuse(_request: Request, error: RequestValidationError) -> JSONResponse:
        return JSONResponse({"error": explain(error)}, status_code=422)

    return app


async def _answer(server: Server, body: GenerateRequest, request: Request) -> Response:
    try:
        text, version = await server.answer(body.prompt, body.sampling(), request.is_disconnected)
    except BusyError as error:
        return _later("too many requests wait already", error.retry_after_s)
    except LeftError:
        # Nobody reads this; the status is for the metrics.
        return Response(status_code=LEFT)
    except asyncio.CancelledError:
        return _later("the server is stopping", 1)
    reply = GenerateReply(text=text, model=LM, version=version)
    return JSONResponse(reply.model_dump())


def _later(why: str, retry_after_s: int) -> JSONResponse:
    headers = {"Retry-After": str(retry_after_s)}
    return JSONResponse({"error": why}, status_code=503, headers=headers)


def _add_status(app: FastAPI, server: Server) -> None:
    """Add what monitoring reads."""

    @app.api_route("/health", methods=["GET", "HEAD"])
    async def health() -> dict[str, str]:
        said = {
            "status": "degraded" if server.degraded else "ok",
            "model": LM,
            "version": server.champion.version,
            "wanted": server.wanted,
        }
        return said if server.problem is None else {**said, "problem": server.problem}

    @app.api_route("/ready", methods=["GET", "HEAD"])
    async def ready() -> Response:
        if server.is_full:
            return _later("too many requests wait already", server.retry_after_s)
        return JSONResponse({"status": "ready"})

    @app.api_route("/metrics", methods=["GET", "HEAD"])
    async def metrics() -> Response:
        page = server.metrics.page(
            queue_length=server.queue_length,
            served=server.champion.version,
            wanted=server.wanted,
            degraded=server.degraded,
        )
        return Response(page, media_type=CONTENT_TYPE)


def explain(error: RequestValidationError) -> str:
    """Say which field is wrong and why."""
    found = []
    for item in error.errors():
        # For invalid JSON the location is a position and not a name.
        names = [str(part) for part in item["loc"][1:] if not isinstance(part, int)]
        found.append(f"{'.'.join(names) or 'body'}: {item['msg']}")
    return "; ".join(found)


def serve(port: int) -> None:
    """Serve the champion until Ctrl-C or TERM.

    Args:
        port: On 127.0.0.1; 0 takes a free one.

    Raises:
        UserError: If there is no champion, or the port is in use.
    """
    import uvicorn

    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((HOST, port))
        except OSError as error:
            raise UserError(
                f"expected port {port} of {HOST} to be free, got: {error}",
                "stop the process that listens there, or choose another port with --port",
            ) from None
        server = Server()
        # From here on a client waits until uvicorn is ready, instead of being refused.
        listener.listen()
        address = f"http://{HOST}:{listener.getsockname()[1]}"
        logger.info("%s version %s on %s%s", LM, server.champion.version, address, GENERATE)
        config = uvicorn.Config(
            build_app(server),
            log_level="warning",
            access_log=False,
            timeout_graceful_shutdown=SHUTDOWN_GRACE_S,
        )
        uvicorn.Server(config).run(sockets=[listener])
