"""Hardware as data: devices, links, units, the roofline, and what transformers ask of it. Imports no framework."""

from __future__ import annotations

from . import collectives, counts
from .devices import Device, Link, device, devices, doubtful, link, links
from .roofline import roofline
from .units import GB, GIB, quantity, show

__all__ = [
    "GB",
    "GIB",
    "Device",
    "Link",
    "collectives",
    "counts",
    "device",
    "devices",
    "doubtful",
    "link",
    "links",
    "quantity",
    "roofline",
    "show",
]
