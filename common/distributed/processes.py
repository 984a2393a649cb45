"""Processes that cannot outlive the one who started them, and whose errors come back whole."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any

from common import UserError

GRACE = 3.0
"""Seconds that the others have to end by themselves once one has failed; then they are killed."""


class RankError(RuntimeError):
    """A rank failed, died or did not end in time; the text names it and its error."""


class Workers:
    """Processes that are called together, again and again; the first error ends them all.

    They come from a fork server that has ``preload`` loaded, and keep what they import between calls.
    """

    def __init__(self, count: int, preload: Sequence[str] = ("torch", "torch.distributed")) -> None:
        context = multiprocessing.get_context("forkserver")
        # Under a test runner the main module is no script that could be loaded again.
        context.set_forkserver_preload(list(preload))
        self._processes: list[Any] = []
        self._pipes: list[Connection] = []
        try:
            for _ in range(count):
                ours, theirs = context.Pipe()
                process = context.Process(target=_serve, args=(theirs, list(sys.path)), daemon=True)
                with _no_main(), _short_names():
                    process.start()
                theirs.close()
                self._pipes.append(ours)
                self._processes.append(process)
        except BaseException:
            self.close()
            raise

    def call(self, function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]], timeout: float | int) -> list[Any]:
        """Call ``function(*arguments[i])`` in process i and return all results.

        Raises:
            RankError: the first process that raised (with its traceback), was killed (with the signal) or overran ``timeout``
                seconds; all have ended by then, and can be called no more.
        """
        until = time.monotonic() + timeout
        try:
            for pipe, each in zip(self._pipes, arguments, strict=True):
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it has died; the end of its pipe says so
                    pipe.send((function, each))
            return self._gather(until, timeout)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End them, now."""
        for process in self._processes:
            if process.is_alive():
                process.kill()
        for process in self._processes:
            process.join()
        for pipe in self._pipes:
            pipe.close()

    @property
    def alive(self) -> bool:
        return all(process.is_alive() for process in self._processes) and not any(pipe.closed for pipe in self._pipes)

    def _gather(self, until: float, timeout: float | int) -> list[Any]:
        results: dict[int, Any] = {}
        failures: dict[int, tuple[float, str]] = {}  # when, and what
        count = len(self._processes)
        while len(results) + len(failures) < count:
            pending = [index for index in range(count) if index not in results and index not in failures]
            ready = wait([self._pipes[index] for index in pending], max(0.0, until - time.monotonic()))
            if not ready:
                break
            for index in (each for each in pending if self._pipes[each] in ready):
                try:
                    failed, value = self._pipes[index].recv()
                except (EOFError, ConnectionResetError):
                    self._processes[index].join(GRACE)
                    # It could not say when; but only this can be the cause of what the others say.
                    failures[index] = 0.0, _ending(self._processes[index].exitcode)
                    continue
                if failed is None:
                    results[index] = value
                else:
                    failures[index] = failed, value
            if failures:
                until = min(until, time.monotonic() + GRACE)
        if failures:
            # What fails later is most often only the lost connection to the first.
            index = min(failures, key=lambda each: failures[each])
            raise RankError(f"rank {index} of {count} {failures[index][1]}")
        if len(results) < count:
            late = sorted(set(range(count)) - set(results))
            raise RankError(
                f"rank {late[0]} of {count} did not end within {timeout:g} s; it waits for another rank, or needs longer"
            )
        return [results[index] for index in range(count)]


@contextlib.contextmanager
def _short_names() -> Iterator[None]:
    """The fork server is reached through a socket among the temporary files, and a socket's path has about a hundred characters."""
    try:
        yield
    except OSError as error:
        if "AF_UNIX" not in str(error):
            raise
        raise UserError(
            f"the directory of temporary files, {tempfile.gettempdir()}, has too long a name for a socket in it; "
            "set TMPDIR to one of at most 60 characters, say /tmp"
        ) from error


@contextlib.contextmanager
def _no_main() -> Iterator[None]:
    """Processes that start meanwhile do not load the main script: what they call is of other modules, and it costs seconds."""
    main = sys.modules["__main__"]
    kept: dict[str, Any] = {name: vars(main)[name] for name in ("__spec__", "__file__") if name in vars(main)}
    main.__spec__ = None
    vars(main).pop("__file__", None)
    try:
        yield
    finally:
        vars(main).update(kept)


def _ending(code: int | None) -> str:
    if code is not None and code < 0:
        return f"was killed by {signal.Signals(-code).name}"
    return f"ended with exit status {code} and without a result"


def _serve(pipe: Connection, path: list[str]) -> None:
    _die_with_parent()
    sys.path[:] = path
    failed = False
    while not failed:
        answer: tuple[float | None, Any]
        try:
            function, arguments = pipe.recv()
        except EOFError:
            break
        except BaseException as error:  # what was sent cannot be loaded here
            answer = _failure(error)
        else:
            try:
                answer = None, function(*arguments)
            except BaseException as error:
                answer = _failure(error)
        failed = answer[0] is not None
        try:
            pipe.send(answer)
        except BrokenPipeError:
            break
        except BaseException as error:  # a result that cannot be pickled
            pipe.send(_failure(error))
            failed = True
    sys.stdout.flush()
    sys.stderr.flush()
    # Libraries' threads and exit handlers must not hold the process.
    os._exit(0)


def _failure(error: BaseException) -> tuple[float, str]:
    text = "".join(traceback.format_exception(error)).rstrip()
    return time.monotonic(), f"failed: {type(error).__name__}: {error}\n{text}"


def _die_with_parent() -> None:
    """End when the process that made the :class:`Workers` has ended, however it did; the fork server lives as long as we do."""

    def watch() -> None:
        parent = multiprocessing.parent_process()
        assert parent is not None
        parent.join()
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="parent watch", daemon=True).start()
