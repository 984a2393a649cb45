"""Processes that cannot outlive the one who started them, and whose errors come back whole."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any

GRACE = 3.0
"""Seconds that the others have to end by themselves once one has failed; then they are killed."""


class RankError(RuntimeError):
    """A rank failed, died or did not end in time; the text names it and its error."""


def run(function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]], timeout: float, preload: Sequence[str]) -> list[Any]:
    """Call ``function(*arguments[i])`` in process i and return all results.

    Raises:
        RankError: the first process that raised (with its traceback), was killed (with the signal) or overran ``timeout``
            seconds; all others have ended by then.
    """
    context = multiprocessing.get_context("forkserver")
    # Under a test runner the main module is no script that could be loaded again.
    context.set_forkserver_preload(list(preload))
    readers, processes = [], []
    try:
        for each in arguments:
            reader, writer = context.Pipe(duplex=False)
            process = context.Process(target=_run, args=(writer, list(sys.path), function, each), daemon=True)
            process.start()
            writer.close()
            readers.append(reader)
            processes.append(process)
        return _gather(readers, processes, time.monotonic() + timeout, timeout)
    finally:
        for process in processes:
            if process.is_alive():
                process.kill()
            process.join()
        for reader in readers:
            reader.close()


def _gather(readers: list[Connection], processes: list[Any], until: float, timeout: float) -> list[Any]:
    results: dict[int, Any] = {}
    failures: dict[int, tuple[float, str]] = {}  # when, and what
    while len(results) + len(failures) < len(processes):
        pending = [index for index in range(len(processes)) if index not in results and index not in failures]
        ready = wait([readers[index] for index in pending], max(0.0, until - time.monotonic()))
        if not ready:
            break
        for index in (each for each in pending if readers[each] in ready):
            try:
                failed, value = readers[index].recv()
            except (EOFError, ConnectionResetError):
                processes[index].join(GRACE)
                # It could not say when; but only this can be the cause of what the others say.
                failures[index] = 0.0, _ending(processes[index].exitcode)
                continue
            if failed is None:
                results[index] = value
            else:
                failures[index] = failed, value
        if failures:
            until = min(until, time.monotonic() + GRACE)
    count = len(processes)
    if failures:
        # What fails later is most often only the lost connection to the first.
        index = min(failures, key=lambda each: failures[each])
        raise RankError(f"rank {index} of {count} {failures[index][1]}")
    if len(results) < count:
        late = sorted(set(range(count)) - set(results))
        raise RankError(f"rank {late[0]} of {count} did not end within {timeout:g} s; it waits for another rank, or needs longer")
    return [results[index] for index in range(count)]


def _ending(code: int | None) -> str:
    if code is not None and code < 0:
        return f"was killed by {signal.Signals(-code).name}"
    return f"ended with exit status {code} and without a result"


def _run(writer: Connection, path: list[str], function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    _die_with_parent()
    sys.path[:] = path
    answer: tuple[float | None, Any]
    try:
        answer = None, function(*arguments)
    except BaseException as error:
        when, text = time.monotonic(), "".join(traceback.format_exception(error)).rstrip()
        answer = when, f"failed: {type(error).__name__}: {error}\n{text}"
    with contextlib.suppress(BrokenPipeError):
        writer.send(answer)
    writer.close()
    # Libraries' threads and exit handlers must not hold the process.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _die_with_parent() -> None:
    """End when the process that called :func:`run` has ended, however it did; the fork server lives as long as we do."""

    def watch() -> None:
        parent = multiprocessing.parent_process()
        assert parent is not None
        parent.join()
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="parent watch", daemon=True).start()
