"""A small server with continuous batching that speaks enough of OpenAI's protocol: ``python -m papers.melange.server``.

POST /v1/completions with prompt, max_tokens and stream; a byte-level model of the zoo answers, one character a token. Before each
step the scheduler admits who waits (prefill first), then every running sequence gets a token. It can be slowed to a given pace, so
that what a profiler should find is known. It prints its address and serves until its input ends or it is stopped.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from common import zoo
from papers.melange.batched import Batched


@dataclass(eq=False)
class Wanted:
    """A request in the server: its tokens come out of ``made``, then None."""

    prompt: torch.Tensor
    left: int
    made: asyncio.Queue[int | None] = field(default_factory=asyncio.Queue)


@dataclass(frozen=True)
class Pace:
    """Seconds that the server takes at least: for a step, for each sequence in it, for each token of a prefill."""

    step: float = 0.0
    sequence: float = 0.0
    token: float = 0.0


_LATE = 0.002
"""Seconds by which a step may start before the last one is handed out, to make up for the time that this takes."""


class Scheduler:
    """Admits, decodes and hands out tokens; the model computes in a thread, so that the server goes on listening."""

    def __init__(self, engine: Batched, pace: Pace) -> None:
        self.engine, self.pace = engine, pace
        self.waiting: deque[Wanted] = deque()
        self.running: dict[int, tuple[Wanted, int]] = {}  # slot -> (request, its last token)
        self.woken = asyncio.Event()
        self.clock = 0.0

    def submit(self, prompt: list[int], tokens: int) -> Wanted:
        context = self.engine.architecture.context
        if not prompt or tokens < 1 or len(prompt) + tokens > context:
            raise ValueError(
                f"{len(prompt)} tokens of prompt and {tokens} of output; wanted at least 1 each and at most {context} together"
            )
        wanted = Wanted(torch.tensor(prompt), tokens)
        self.waiting.append(wanted)
        self.woken.set()
        return wanted

    async def run(self) -> None:
        """Step after step, for ever."""
        while True:
            if not self.waiting and not self.running:
                self.woken.clear()
                await self.woken.wait()
                self.clock = time.perf_counter()
            free = deque(slot for slot in range(self.engine.slots) if slot not in self.running)
            if self.waiting and free:
                while self.waiting and free:
                    slot, wanted = free.popleft(), self.waiting.popleft()
                    token = await self.take(self.pace.token * len(wanted.prompt), self.engine.prefill, slot, wanted.prompt)
                    self.give(slot, wanted, token)
            else:
                slots, tokens = list(self.running), [token for _, token in self.running.values()]
                made = await self.take(self.pace.step + self.pace.sequence * len(slots), self.engine.decode, slots, tokens)
                for slot, token in zip(slots, made, strict=True):
                    self.give(slot, self.running[slot][0], token)

    async def take(self, seconds: float, work: Callable[..., Any], *arguments: Any) -> Any:
        """The work's result, so many seconds after the last one or as soon as it is done.

        The thread sleeps, as the event loop would only do so in whole milliseconds.
        """
        end = self.clock + seconds

        def paced() -> Any:
            done = work(*arguments)
            time.sleep(max(0.0, end - time.perf_counter()))
            return done

        done = await asyncio.to_thread(paced)
        self.clock = max(end, time.perf_counter() - _LATE)
        return done

    def give(self, slot: int, wanted: Wanted, token: int) -> None:
        wanted.made.put_nowait(token)
        wanted.left -= 1
        self.running[slot] = (wanted, token)
        if wanted.left == 0:
            del self.running[slot]
            wanted.made.put_nowait(None)


async def answer(scheduler: Scheduler, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One connection, one request."""
    try:
        first, *headers = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        fields = {name.lower(): value.strip() for name, _, value in (each.partition(":") for each in headers)}
        body = await reader.readexactly(int(fields.get("content-length", 0)))
        try:
            if not first.startswith("POST /v1/completions "):
                raise ValueError(f"{first.rsplit(' ', 1)[0]} is not served; wanted POST /v1/completions")
            asked = json.loads(body)
            wanted = scheduler.submit(list(asked["prompt"].encode("latin-1")), int(asked["max_tokens"]))
        except (ValueError, KeyError, TypeError) as error:
            writer.write(_head("400 Bad Request", "application/json") + json.dumps({"error": {"message": str(error)}}).encode())
            return
        kind = "text/event-stream" if asked.get("stream") else "application/json"
        writer.write(_head("200 OK", kind))
        text = ""
        while (token := await wanted.made.get()) is not None:
            text += chr(token)
            if asked.get("stream"):
                writer.write(b"data: " + json.dumps({"choices": [{"text": chr(token)}]}).encode() + b"\n\n")
                await writer.drain()
        writer.write(b"data: [DONE]\n\n" if asked.get("stream") else json.dumps({"choices": [{"text": text}]}).encode())
    except (ConnectionError, asyncio.IncompleteReadError):
        pass  # the client has gone; its sequence runs to its end
    finally:
        writer.close()


def _head(status: str, kind: str) -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nConnection: close\r\n\r\n".encode()


async def serve(model: str, slots: int, port: int, pace: Pace) -> None:
    """Listen on this machine alone, say where, and stop when standard input ends."""
    scheduler = Scheduler(Batched(zoo.load(model).torch(), slots), pace)
    server = await asyncio.start_server(lambda reader, writer: answer(scheduler, reader, writer), "127.0.0.1", port)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    steps = asyncio.create_task(scheduler.run())
    ended = asyncio.create_task(asyncio.to_thread(sys.stdin.read))
    done, _ = await asyncio.wait({steps, ended}, return_when=asyncio.FIRST_COMPLETED)
    server.close()
    steps.cancel()
    if steps in done:
        await steps  # raises what stopped it


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m papers.melange.server", description=__doc__)
    parser.add_argument("--model", default="byte_lm_draft.v1", help="a byte-level model of the zoo")
    parser.add_argument("--slots", type=int, default=8, help="sequences that run at once")
    parser.add_argument("--port", type=int, default=0, help="0: any that is free")
    for name, unit in (("step", "a step"), ("sequence", "each sequence in it"), ("token", "each token of a prefill")):
        parser.add_argument(f"--{name}", type=float, default=0.0, help=f"least seconds of {unit}")
    options: Any = parser.parse_args(arguments)
    torch.set_num_threads(1)
    pace = Pace(options.step, options.sequence, options.token)
    asyncio.run(serve(options.model, options.slots, options.port, pace))


if __name__ == "__main__":
    main()
