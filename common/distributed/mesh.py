"""Several JAX devices on one CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from . import processes


def on_devices(function: Callable[..., Any], devices: int, *arguments: Any, timeout: float = 120.0) -> Any:
    """Call ``function(*arguments)`` in a process of its own in which JAX sees ``devices`` CPU devices.

    How many there are is fixed when JAX starts, so the process that asks cannot change its own. Arguments and the result
    travel as NumPy arrays and plain values.

    Raises:
        RankError: the function raised, died or overran ``timeout`` seconds.
        ValueError: no devices.
    """
    if devices < 1:
        raise ValueError(f"on_devices: devices is {devices}; wanted at least one")
    return processes.run(_on_devices, [(function, devices, arguments)], timeout, ["torch", "torch.distributed"])[0]


def _on_devices(function: Callable[..., Any], devices: int, arguments: tuple[Any, ...]) -> Any:
    import jax

    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", devices)
    return function(*arguments)
