"""Several JAX devices on the CPU, in one process or several."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

from .processes import RankError, Workers

_TRIES = 3


def on_devices(
    function: Callable[..., Any], devices: int, *arguments: Any, processes: int = 1, timeout: float | int = 120.0
) -> Any:
    """Call ``function(*arguments)`` where JAX sees ``devices`` CPU devices in each of ``processes`` processes.

    How many there are is fixed when JAX starts, so the process that asks cannot change its own. Several processes run the
    same program on one mesh of all their devices (``jax.distributed``), as several hosts would. Arguments and the result, of
    which the first process's is returned, travel as NumPy arrays and plain values.

    Raises:
        RankError: the function raised, died or overran ``timeout`` seconds.
        ValueError: no devices or no processes.
    """
    if devices < 1 or processes < 1:
        raise ValueError(f"on_devices: devices is {devices} and processes {processes}; wanted at least one of each")
    for left in reversed(range(_TRIES)):
        workers = Workers(processes)
        meeting = f"127.0.0.1:{_free_port()}" if processes > 1 else None
        each = [(function, devices, meeting, processes, index, arguments) for index in range(processes)]
        try:
            return workers.call(_on_devices, each, timeout)[0]
        except RankError as error:
            # Between finding the port and using it, another process may have taken it.
            if not left or meeting is None or "address already in use" not in str(error).lower():
                raise
        finally:
            workers.close()
    raise AssertionError("unreachable")


def _on_devices(
    function: Callable[..., Any], devices: int, meeting: str | None, processes: int, index: int, arguments: tuple[Any, ...]
) -> Any:
    import jax

    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", devices)
    if meeting:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(meeting, processes, index)
    return function(*arguments)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
