"""The champion behind HTTP on 127.0.0.1: `enigma serve`.

    curl -s 127.0.0.1:8000/generate -d '{"prompt": "却说曹操"}' -H 'content-type: application/json'

After a promotion or rollback the new champion is loaded beside the old one within seconds,
and takes over between two requests, so none is lost.
"""

import logging
import socket
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.middleware.trustedhost import TrustedHostMiddleware

from enigma.generation import Sampling, continue_text
from pipelines.base.errors import UserError
from pipelines.registry.names import LM
from pipelines.registry.versions import Champion, champion_version, load_champion

HOST = "127.0.0.1"
POLL_INTERVAL_S = 2.0
MAX_PROMPT_CHARACTERS = 4096

logger = logging.getLogger(__name__)


class GenerateRequest(BaseModel):
    """A request; its options are those of `enigma generate`."""

    model_config = ConfigDict(extra="forbid", strict=True)

    prompt: Annotated[str, Field(max_length=MAX_PROMPT_CHARACTERS)]
    max_new_tokens: Annotated[int, Field(ge=1, le=1024)] = Sampling.max_new_tokens
    temperature: Annotated[float, Field(ge=0.0, le=10.0, strict=False)] = Sampling.temperature
    top_k: Annotated[int, Field(ge=0)] = Sampling.top_k
    top_p: Annotated[float, Field(gt=0.0, le=1.0, strict=False)] = Sampling.top_p
    repetition_penalty: Annotated[float, Field(ge=1.0, le=10.0, strict=False)] = (
        Sampling.repetition_penalty
    )
    seed: Annotated[int, Field(ge=0, lt=2**32)] = Sampling.seed


class GenerateReply(BaseModel):
    """The text, and the version that wrote it."""

    text: str
    model: str
    version: str


class Server:
    """Holds the champion and follows its alias."""

    def __init__(self) -> None:
        self._champion = load_champion()
        # Sampling uses torch's global generator, so requests take turns.
        self._turn = threading.Lock()
        self._stop = threading.Event()
        self._follower = threading.Thread(target=self._follow, name="follow-alias", daemon=True)

    @property
    def champion(self) -> Champion:
        """The champion that answers now."""
        return self._champion

    def start(self) -> None:
        """Start to follow the alias."""
        self._follower.start()

    def stop(self) -> None:
        """Stop following."""
        self._stop.set()
        self._follower.join()

    def answer(self, request: GenerateRequest) -> GenerateReply:
        """Continue a prompt."""
        sampling = Sampling(**request.model_dump(exclude={"prompt"}))
        with self._turn:
            champion = self._champion
            added = continue_text(champion.model, champion.tokenizer, request.prompt, sampling)
        return GenerateReply(text=request.prompt + added, model=LM, version=champion.version)

    def _follow(self) -> None:
        while not self._stop.wait(POLL_INTERVAL_S):
            try:
                version = champion_version()
                if version != self._champion.version:
                    self._champion = load_champion(version)
                    logger.info("%s version %s answers from now on", LM, version)
            except UserError as error:
                logger.warning(
                    "version %s keeps answering: %s", self._champion.version, error.problem
                )


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

    @app.get("/health")
    def health() -> dict[str, str]:
        return {"model": LM, "version": server.champion.version}

    # Not a coroutine: it runs in a thread, so the server keeps accepting requests.
    @app.post("/generate")
    def answer(request: GenerateRequest) -> GenerateReply:
        return server.answer(request)

    @app.exception_handler(RequestValidationError)
    def refuse(_request: Request, error: RequestValidationError) -> JSONResponse:
        return JSONResponse({"error": explain(error)}, status_code=422)

    return app


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
        logger.info("%s version %s on %s/generate", LM, server.champion.version, address)
        config = uvicorn.Config(build_app(server), log_level="warning", access_log=False)
        uvicorn.Server(config).run(sockets=[listener])
