"""A serving app that says what a test wants it to say, and remembers what it was asked."""

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

from fastapi import FastAPI, Request
from fastapi.responses import Response, StreamingResponse

from zhub.generation import Embeddings, Failed, Line

BROKEN = "the connection breaks"
WAITING = "no line comes any more"

Script = list[Line | str]


@dataclass
class Listener:
    """What becomes of the client of an answer that does not go on."""

    waits: threading.Event = field(default_factory=threading.Event)
    left: threading.Event = field(default_factory=threading.Event)


def scripted(
    script: Script,
    asked: list[bytes],
    embedded: Sequence[Embeddings | Failed] = (),
    listener: Listener | None = None,
) -> FastAPI:
    """Answers ``/generate`` with the lines of ``script``, with texts that are none, and does what BROKEN and WAITING
    say; ``/embed`` with the first of ``embedded``.

    ``asked`` gets each body. ``listener`` says whether a client waits while no line comes, and whether it has left.
    """
    serving = FastAPI()

    async def lines() -> AsyncIterator[str]:
        for line in script:
            if line == BROKEN:
                raise ConnectionError
            if line == WAITING:
                assert listener is not None
                listener.waits.set()
                try:
                    await asyncio.Event().wait()
                finally:
                    listener.left.set()
            yield line if isinstance(line, str) else line.model_dump_json(ensure_ascii=True) + "\n"

    @serving.post("/generate")
    async def generate(request: Request) -> StreamingResponse:
        asked.append(await request.body())
        return StreamingResponse(lines())

    @serving.post("/embed")
    async def embed(request: Request) -> Response:
        asked.append(await request.body())
        return Response(embedded[0].model_dump_json(), media_type="application/json")

    return serving
