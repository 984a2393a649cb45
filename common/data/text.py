"""Text as bytes: the King James Version, split by whole books, Python source, split by modules, and batches of them."""

from __future__ import annotations

import lzma
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Int64, UInt8

from common import UserError
from common.data import find

HELD_OUT = ("Ruth", "Ecclesiastes", "Daniel", "John", "Hebrews")
"""The books that no model is trained on: a narrative, wisdom, a prophet, a gospel, a letter; 5.8 % of the bytes. John is
the gospel that shares the fewest sentences with the others."""

HELD_OUT_MODULES = ("calendar.py", "difflib.py", "queue.py", "textwrap.py", "weakref.py")
"""The modules of the standard library that no model is trained on; 6.3 % of the bytes."""


@dataclass(frozen=True, eq=False)
class Text:
    """A text in bytes.

    Attributes:
        whole: all of it.
        train, held_out: disjoint parts that together have every byte of it once.
        source, sha256: which file it came from.
    """

    whole: UInt8[np.ndarray, " bytes"]
    train: UInt8[np.ndarray, " train"]
    held_out: UInt8[np.ndarray, " held"]
    source: str
    sha256: str


def king_james() -> Text:
    """The King James Version: 66 books, 4.1 MB of ASCII; "= Genesis" heads a book, an empty line precedes a chapter, each
    verse is a line. The books of :data:`HELD_OUT` are held out.

    Raises:
        UserError: the file is missing, damaged or lacks a book.
    """
    return _split(
        "text/king_james.txt.xz",
        "0ea4fdd8d811025977b092453a00c9eac2791619aefb0009527fafa7c4bbfd91",
        rb"= (.*)\n",
        HELD_OUT,
    )


def python_source() -> Text:
    """86 modules of Python 3.11's standard library, 2.6 MB of ASCII; "# == abc.py" heads each. The modules of
    :data:`HELD_OUT_MODULES` are held out.

    Raises:
        UserError: the file is missing, damaged or lacks a module.
    """
    return _split(
        "text/python_source.txt.xz",
        "7242b8f0155e88b4c73d11e38eb09bb40025188a67cb6266d22d4687516fc8ce",
        rb"# == (.*)\n",
        HELD_OUT_MODULES,
    )


def _split(file: str, sha256: str, heading: bytes, held_out: tuple[str, ...]) -> Text:
    """The parts of a text, each under a line that matches the heading, are trained on or held out."""
    found = find(file, sha256)
    try:
        content = lzma.decompress(found.path.read_bytes())
    except lzma.LZMAError as error:
        raise UserError(f"{found.path} is no whole xz file ({error}); replace or remove it") from error
    heads = list(re.finditer(rb"^" + heading, content, flags=re.MULTILINE))
    names = ["", *(head[1].decode(errors="replace") for head in heads)]
    if missing := [name for name in held_out if name not in names]:
        wanted = heading.replace(rb"(.*)\n", missing[0].encode()).decode()
        raise UserError(f"{found.path} has no part {missing[0]!r} ({wanted!r} on a line), which is to be held out")
    # What precedes the first heading counts as a part of its own, so that no byte of an own copy is lost.
    edges = [0, *(head.start() for head in heads), len(content)]
    parts = [content[first:last] for first, last in pairwise(edges)]

    def joined(held: bool) -> np.ndarray:
        return _bytes(b"".join(part for name, part in zip(names, parts, strict=True) if (name in held_out) == held))

    return Text(_bytes(content), joined(False), joined(True), found.source, found.sha256)


def batches(
    text: UInt8[np.ndarray, " bytes"], batch: int, length: int, seed: int
) -> Callable[[int], Int64[np.ndarray, "batch length+1"]]:
    """A function from the step to its batch: windows at random places, inputs ``[:, :-1]`` and targets ``[:, 1:]``.

    A batch depends on seed and step alone, so a resumed run needs no generator's state.
    """
    if len(text) <= length:
        raise ValueError(f"windows of {length} + 1 bytes need a longer text than {len(text)} bytes")

    def at(step: int) -> np.ndarray:
        starts = np.random.default_rng((seed, step)).integers(0, len(text) - length, batch)
        return text[starts[:, None] + np.arange(length + 1)].astype(np.int64)

    return at


def windows(text: UInt8[np.ndarray, " bytes"], batch: int, length: int) -> Iterator[Int64[np.ndarray, "rows length+1"]]:
    """Batches for evaluation: windows side by side, so that every byte but the first and a rest shorter than a window is
    a target once. The last batch may have fewer rows."""
    count = (len(text) - 1) // length
    if count < 1:
        raise ValueError(f"windows of {length} + 1 bytes need a longer text than {len(text)} bytes")
    for first in range(0, count, batch):
        starts = np.arange(first, min(first + batch, count)) * length
        yield text[starts[:, None] + np.arange(length + 1)].astype(np.int64)


def _bytes(content: bytes) -> np.ndarray:
    return np.frombuffer(content, np.uint8)
