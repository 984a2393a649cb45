"""Profile a real endpoint: Poisson arrivals of requests of one size, and the highest rate that keeps the objective, by bisection.

    python -m papers.melange.profiler http://localhost:8000 --model llama2-7b --objective 0.12 > A100.csv

It drives any server that speaks OpenAI's completions protocol with streaming (paper, section on profiling).
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import subprocess
import sys
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from common import ROOT, UserError
from papers.melange import published
from papers.melange.workload import arrivals


@dataclass(frozen=True)
class Endpoint:
    """Where the server is, and how a prompt of a given length is written for its tokenizer.

    Attributes:
        url: such as "http://localhost:8000".
        model: the name that the server knows it by.
        word: a text that is one token; a prompt is this word, repeated.
        timeout: seconds without an answer after which a request counts as failed.
    """

    url: str
    model: str = ""
    word: str = "hi "
    timeout: int | float = 600

    def complete(self, prompt: str, tokens: int) -> tuple[str, list[float]]:
        """The text that follows, and the time of each piece of it.

        Raises:
            UserError: the server does not answer, or refuses.
        """
        place = urllib.parse.urlsplit(self.url)
        kind = http.client.HTTPSConnection if place.scheme == "https" else http.client.HTTPConnection
        asked = {
            "model": self.model,
            "prompt": prompt,
            "max_tokens": tokens,
            "stream": True,
            "temperature": 0,
            "ignore_eos": True,
        }
        text, times = "", []
        try:
            with contextlib.closing(kind(place.netloc, timeout=self.timeout)) as connection:
                path = place.path.rstrip("/") + "/v1/completions"
                connection.request("POST", path, json.dumps(asked), {"Content-Type": "application/json"})
                response = connection.getresponse()
                if response.status != http.client.OK:
                    raise UserError(f"{self.url} answers {response.status}: {response.read(300).decode(errors='replace')}")
                for line in response:
                    data = line.removeprefix(b"data:").strip()
                    if not line.startswith(b"data:") or data == b"[DONE]":
                        continue
                    text += json.loads(data)["choices"][0]["text"]
                    times.append(time.perf_counter())
        except OSError as error:
            raise UserError(f"{self.url} does not answer ({error}); start the server or correct the address") from error
        return text, times


@dataclass(frozen=True)
class Seen:
    """Of one stream of requests: mean seconds between tokens over the requests, and requests a second that were finished."""

    between: float
    rate: float


def send(endpoint: Endpoint, prompt: int, output: int, rate: float, count: int, rng: np.random.Generator) -> Seen:
    """``count`` requests of one size, Poisson at ``rate``; an infinite rate sends all at once."""
    starts = arrivals(rate, count, rng) if np.isfinite(rate) else np.zeros(count)
    begin = time.perf_counter()

    def one(start: float) -> list[float]:
        time.sleep(max(0.0, begin + start - time.perf_counter()))
        return endpoint.complete(endpoint.word * prompt, output)[1]

    with ThreadPoolExecutor(count) as pool:
        times = list(pool.map(one, starts))
    gaps = [(each[-1] - each[0]) / (output - 1) for each in times]
    ends = np.array([each[-1] for each in times])
    return Seen(float(np.mean(gaps)), count / float(ends.max() - begin - starts[0]))


def max_rate(between: Callable[[float], float], objective: float, low: float, high: float, steps: int = 6) -> float:
    """The highest rate whose mean time between tokens keeps the objective, between two rates, by bisection of their logs.

    Args:
        between: seconds between tokens at a rate.

    Returns:
        A rate that was seen to keep it; 0 if the lowest does not.
    """
    if not 0 < low < high or steps < 1:
        raise ValueError(f"rates from {low} to {high} in {steps} steps; wanted 0 < low < high and at least one step")
    if between(low) > objective:
        return 0.0
    good, bad = low, high
    for _ in range(steps):
        middle = (good * bad) ** 0.5
        good, bad = (middle, bad) if between(middle) <= objective else (good, middle)
    return good


@contextlib.contextmanager
def toy_server(model: str = "byte_lm_draft.v1", slots: int = 8, **pace: float) -> Iterator[Endpoint]:
    """:mod:`papers.melange.server` as a process of its own, at a pace of its options; one character is one token."""
    command = [sys.executable, "-m", "papers.melange.server", "--model", model, "--slots", str(slots)]
    command += [f"--{name}={seconds}" for name, seconds in pace.items()]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        late = threading.Timer(120, process.kill)  # a server that never says its address would be waited for without end
        late.start()
        try:
            assert process.stdout
            url = process.stdout.readline().strip()
            late.cancel()
            if not url:
                raise UserError(f"the server of {model} ended before it listened; run {' '.join(command[1:])} to see why")
            yield Endpoint(url, model, word="a", timeout=60)
        finally:
            late.cancel()
            process.kill()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m papers.melange.profiler", description=__doc__)
    parser.add_argument("url")
    parser.add_argument("--model", default="")
    parser.add_argument("--objective", type=float, default=0.12, help="seconds between tokens")
    parser.add_argument("--requests", type=int, default=100, help="of each rate that is tried")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    endpoint, rng = Endpoint(options.url, options.model), np.random.default_rng(options.seed)
    try:
        for prompt in published.INPUT_EDGES:
            for output in published.OUTPUT_EDGES:

                def between(rate: float, prompt: int = prompt, output: int = output) -> float:
                    return send(endpoint, prompt, output, rate, options.requests, rng).between

                top = send(endpoint, prompt, output, np.inf, options.requests, rng).rate
                print(prompt, output, f"{max_rate(between, options.objective, top / 64, top):.6g}", sep=",", flush=True)
    except UserError as error:
        print(f"melange: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
