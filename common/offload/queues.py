"""Copy queues: in-order lanes that move bytes while the caller computes, as threads on a CPU or streams on a GPU."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, Protocol, runtime_checkable

import numpy as np

from common.offload.trace import Trace


class Handle:
    """The completion of a move.

    ``wait()`` makes what follows in this thread see its result, and raises what it raised; on a GPU it holds back the
    current stream, not the host. ``finish()`` holds back the host in both cases. ``seen``: either was called.
    """

    def __init__(self, future: Future[Any] | None = None, event: Any = None) -> None:
        self.future, self.event, self.seen = future, event, False

    @property
    def done(self) -> bool:
        return (self.future is None or self.future.done()) and (self.event is None or self.event.query())

    def wait(self, timeout: float | int | None = None) -> Any:
        self.seen = True
        if self.event is not None:
            import torch

            torch.cuda.current_stream().wait_event(self.event)
        return self.future.result(timeout) if self.future else None

    def finish(self, timeout: float | int | None = None) -> Any:
        self.seen = True
        if self.event is not None:
            self.event.synchronize()
        return self.future.result(timeout) if self.future else None


@runtime_checkable
class Queue(Protocol):
    """What both kinds of queue offer."""

    def copy(self, target: Any, source: Any, *, name: str = "copy", after: Sequence[Handle] = ()) -> Handle: ...
    def close(self) -> None: ...
    def __enter__(self) -> Any: ...
    def __exit__(self, *_: object) -> None: ...


def copy_queue(
    lane: str,
    *,
    trace: Trace | None = None,
    device: str = "cpu",
    bytes_per_second: float | int | None = None,
    latency: float | int = 0.0,
) -> Queue:
    """A queue that copies between host and device: a thread for the "cpu", a stream for a CUDA device.

    Args:
        lane: its name in the trace, such as "upload".
        bytes_per_second, latency: the least time of a move of n bytes is latency + n / bytes_per_second; the thread sleeps
            for what is left, so that cores are free for the computation, as they are with a real link. CPU only.
    """
    if device == "cpu":
        return ThreadQueue(lane, trace=trace, bytes_per_second=bytes_per_second, latency=latency)
    if bytes_per_second is not None or latency:
        raise ValueError("a real link has its own speed; bytes_per_second and latency are for device='cpu'")
    return StreamQueue(lane, trace=trace, device=device)


def here(device: str = "cpu") -> Handle:
    """A handle of what has been computed so far, to copy after; on a CPU it is done already."""
    if device == "cpu":
        return Handle()
    import torch

    event = torch.cuda.Event(enable_timing=True)
    event.record(torch.cuda.current_stream(device))
    return Handle(event=event)


class ThreadQueue:
    """One worker thread that takes moves in order."""

    def __init__(
        self, lane: str, *, trace: Trace | None = None, bytes_per_second: float | int | None = None, latency: float | int = 0.0
    ) -> None:
        if (bytes_per_second is not None and not bytes_per_second > 0) or not latency >= 0:
            raise ValueError(
                f"{lane}: bytes_per_second is {bytes_per_second} and latency {latency}; wanted a positive speed (or None) and no negative wait"
            )
        self.lane, self.trace, self.bytes_per_second, self.latency = lane, trace or Trace(), bytes_per_second, latency
        self._moves: queue.SimpleQueue[tuple[Any, ...] | None] = queue.SimpleQueue()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name=lane, daemon=True)
        self._thread.start()

    def copy(self, target: Any, source: Any, *, name: str = "copy", after: Sequence[Handle] = ()) -> Handle:
        """Copy source into target (both NumPy arrays or both CPU tensors, same dtype and shape) once ``after`` is done.

        Raises:
            ValueError: dtypes or shapes differ; the queue is closed.
        """
        if target.dtype != source.dtype or tuple(target.shape) != tuple(source.shape):
            raise ValueError(
                f"{self.lane} {name!r}: cannot copy {source.dtype}{tuple(source.shape)} into {target.dtype}{tuple(target.shape)}; views of one dtype and shape are wanted"
            )
        if isinstance(target, np.ndarray):
            return self.run(lambda: np.copyto(target, source), target.nbytes, name=name, after=after)
        return self.run(lambda: target.copy_(source), target.nbytes, name=name, after=after)

    def run(self, work: Callable[[], Any], size: int, *, name: str, after: Sequence[Handle] = ()) -> Handle:
        """Any work that counts as a move of ``size`` bytes; what it returns is what ``wait()`` returns."""
        if self._closed:
            raise ValueError(f"{self.lane} is closed; {name!r} cannot be queued")
        future: Future[Any] = Future()
        self._moves.put((future, work, size, name, tuple(after)))
        return Handle(future)

    def close(self) -> None:
        """Finish what is queued and end the thread."""
        if not self._closed:
            self._closed = True
            self._moves.put(None)
            self._thread.join()

    def __enter__(self) -> ThreadQueue:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _work(self) -> None:
        while (move := self._moves.get()) is not None:
            future, work, size, name, after = move
            try:
                for handle in after:
                    handle.finish()
                start = self.trace.now()
                result = work()
                least = self.latency + (size / self.bytes_per_second if self.bytes_per_second else 0.0)
                if (left := least - (self.trace.now() - start)) > 0:
                    time.sleep(left)
                self.trace.add(name, self.lane, size, start)
                future.set_result(result)
            except BaseException as error:  # raised again where the result is waited for
                future.set_exception(error)
            del move, future, work, after  # what was captured must not live until the next move


class StreamQueue:
    """A CUDA stream. Moves come into the trace when :meth:`settle` or :meth:`close` is called."""

    def __init__(self, lane: str, *, trace: Trace | None = None, device: str = "cuda") -> None:
        import torch

        self.lane, self.trace, self.stream = lane, trace or Trace(), torch.cuda.Stream(device)
        self._zero = torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize(device)
        self._zero.record(self.stream)
        self._offset = self.trace.now()
        self._pending: list[tuple[str, int, Any, Any]] = []

    def copy(self, target: Any, source: Any, *, name: str = "copy", after: Sequence[Handle] = ()) -> Handle:
        """Copy a tensor into another once ``after`` is done; the host's side must be pinned, or the copy blocks the host."""
        import torch

        for handle in after:
            if handle.event is not None:
                self.stream.wait_event(handle.event)
            elif not handle.done:
                handle.wait()
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        with torch.cuda.stream(self.stream):
            begin.record()
            target.copy_(source, non_blocking=True)
            end.record()
        self._pending.append((name, target.nbytes, begin, end))
        return Handle(event=end)

    def settle(self) -> None:
        """Wait for all moves and put them into the trace."""
        self.stream.synchronize()
        for name, size, begin, end in self._pending:
            start, stop = (self._offset + self._zero.elapsed_time(event) / 1e3 for event in (begin, end))
            self.trace.add(name, self.lane, size, start, stop)
        self._pending.clear()

    close = settle

    def __enter__(self) -> StreamQueue:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
