"""Quantities with units, as text and back: a prefix, a base, and a rate, and nothing that mixes them.

GB is 10^9 bytes and GiB is 2^30; a multiply-add (MAC) is two operations (FLOP for floating point, OP for whole numbers).
"""

from __future__ import annotations

import re

GB, GIB = 10**9, 2**30
"""Bytes."""

_DECIMAL = {"": 1.0, "n": 1e-9, "u": 1e-6, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15}
_BINARY = {"Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40}
# Symbol of the text -> (dimension, how many of the dimension's unit it is).
_BASES = {
    "B": ("B", 1.0),
    "bit": ("B", 0.125),
    "FLOP": ("OP", 1.0),
    "OP": ("OP", 1.0),
    "MAC": ("OP", 2.0),
    "Hz": ("1/s", 1.0),
    "s": ("s", 1.0),
    "W": ("W", 1.0),
    "J": ("J", 1.0),
    "USD": ("USD", 1.0),
}
_TIMES = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9, "h": 3600.0}
_TEXT = re.compile(r"\s*([-+0-9.eE]+)\s*([A-Za-z]+)(?:/([A-Za-z]+))?\s*")


def quantity(text: str, unit: str) -> float:
    """The number of ``unit`` that a text such as "1555 GB/s", "40 GiB" or "16 MAC/ns" says.

    Args:
        text: number, prefix (n u m k M G T P, and Ki Mi Gi Ti for bytes), base (B bit FLOP OP MAC Hz s W J USD), and for a
            rate a time (s ms us ns h).
        unit: what is wanted: "B", "B/s", "OP", "OP/s", "1/s", "s", "W", "J" or "USD/s".

    Raises:
        ValueError: a text that is no quantity, or one of another dimension.
    """
    match = _TEXT.fullmatch(str(text))
    if match is None:
        raise ValueError(f"{text!r} is no quantity; wanted a number and a unit, such as '1555 GB/s'")
    number, symbol, time = match.groups()
    base = next((base for base in sorted(_BASES, key=len, reverse=True) if symbol.endswith(base) and _known(symbol, base)), None)
    if base is None or (time is not None and time not in _TIMES):
        raise ValueError(f"{text!r} has no unit that is known; wanted a prefix and one of {', '.join(_BASES)}")
    dimension, size = _BASES[base]
    prefix = symbol.removesuffix(base)
    size *= {**_DECIMAL, **_BINARY}[prefix]
    if time is not None:
        dimension, size = f"{dimension}/s", size / _TIMES[time]
    if dimension != unit:
        raise ValueError(f"{text!r} is in {dimension}; wanted {unit}")
    return float(number) * size


def show(value: float, unit: str, digits: int = 4) -> str:
    """A quantity for people, with a decimal prefix: show(1.555e12, "B/s") is "1.555 TB/s"."""
    prefix = next((p for p, size in reversed(_DECIMAL.items()) if p in "kMGTP" and p and abs(value) >= size), "")
    return f"{value / _DECIMAL[prefix]:.{digits}g} {prefix}{unit}"


def _known(symbol: str, base: str) -> bool:
    prefix = symbol.removesuffix(base)
    return prefix in _DECIMAL or (prefix in _BINARY and base == "B")
