"""Devices and links as data: every figure has a source, and one that is doubtful says so when it is used."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, field_validator

from .units import quantity

_HERE = Path(__file__).parent
_read: set[tuple[str, str]] = set()


class _Record(BaseModel):
    """One device as the file has it; figures are texts with units."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    source: str
    peak: dict[str, str]
    sparse: list[str] = []
    memory: str | None = None
    bandwidth: str | None = None
    multiprocessors: int | None = None
    lanes: int | None = None
    tensor_fma: int | None = None
    boost: str | None = None
    tensor_boost: str | None = None
    l2: str | None = None
    shared: str | None = None
    power: str | None = None
    nvlink: str | None = None
    pcie: str | None = None
    target: str | None = None
    unsure: list[str] = []

    @field_validator("peak")
    @classmethod
    def _peaks(cls, peak: dict[str, str]) -> dict[str, str]:
        for text in peak.values():
            quantity(text, "OP/s")
        return peak


class _LinkRecord(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    source: str
    rate: str
    usable: str
    latency: str = "0 s"
    unsure: list[str] = []


@dataclass(frozen=True)
class Device:
    """What models ask of a device; read figures through the properties, which note the doubtful ones.

    Rates of arithmetic are operations a second, dense unless said, a multiply-add counting two; tensor-core FP16 and BF16
    accumulate in FP32 unless the format's name says otherwise.
    """

    key: str
    record: _Record

    @property
    def name(self) -> str:
        return self.record.name

    @property
    def formats(self) -> tuple[str, ...]:
        """The number formats that have a peak."""
        return tuple(self.record.peak)

    def peak(self, dtype: str, *, sparse: bool = False) -> float:
        """Operations a second in a number format; ``sparse``: with 2:4 structured sparsity, exactly twice the dense rate.

        Raises:
            ValueError: a format that the device has no units for, or no sparse ones.
        """
        if dtype not in self.record.peak:
            raise ValueError(f"{self.name} has no {dtype} units; it has {', '.join(self.record.peak)}")
        if sparse and dtype not in self.record.sparse:
            has = ", ".join(self.record.sparse) or "no format"
            raise ValueError(f"{self.name} has no 2:4 sparse {dtype}; it has {has} sparse")
        return (2 if sparse else 1) * self._figure(f"peak.{dtype}", self.record.peak[dtype], "OP/s")

    @property
    def bandwidth(self) -> float:
        """Bytes a second between the chip and its memory."""
        return self._figure("bandwidth", self.record.bandwidth, "B/s")

    @property
    def memory(self) -> float:
        """Bytes."""
        return self._figure("memory", self.record.memory, "B")

    @property
    def l2(self) -> float:
        """Bytes of the last cache on the chip."""
        return self._figure("l2", self.record.l2, "B")

    @property
    def shared(self) -> float:
        """Bytes of shared memory of one multiprocessor, at most."""
        return self._figure("shared", self.record.shared, "B")

    @property
    def power(self) -> float:
        """Watts, the thermal design power."""
        return self._figure("power", self.record.power, "W")

    @property
    def boost(self) -> float:
        """Boost clock of the CUDA cores in Hz."""
        return self._figure("boost", self.record.boost, "1/s")

    @property
    def nvlink(self) -> float:
        """Bytes a second over all NVLinks in one direction (vendors add up both)."""
        return self._figure("nvlink", self.record.nvlink, "B/s") / 2

    @property
    def pcie(self) -> Link:
        return link(str(self._given("pcie", self.record.pcie)))

    @property
    def multiprocessors(self) -> int:
        return int(self._given("multiprocessors", self.record.multiprocessors))

    def ridge(self, dtype: str, *, sparse: bool = False) -> float:
        """Operations for each byte of memory traffic at which arithmetic takes as long as memory."""
        return self.peak(dtype, sparse=sparse) / self.bandwidth

    def unsure(self, field: str) -> bool:
        """Whether a figure ("bandwidth", "peak.int8") comes from memory or a secondary source."""
        return field in self.record.unsure

    def _given(self, field: str, value: Any) -> Any:
        if value is None:
            raise ValueError(f"{self.name}: the data sheet here has no {field}; add it with its source to devices.yaml")
        if self.unsure(field):
            _read.add((self.key, field))
        return value

    def _figure(self, field: str, text: str | None, unit: str) -> float:
        return quantity(self._given(field, text), unit)


@dataclass(frozen=True)
class Link:
    """A connection, in one direction: ``rate`` is what the standard says, ``usable`` what programs reach; bytes a second."""

    key: str
    record: _LinkRecord

    @property
    def name(self) -> str:
        return self.record.name

    @property
    def rate(self) -> float:
        return self._figure("rate", self.record.rate, "B/s")

    @property
    def usable(self) -> float:
        return self._figure("usable", self.record.usable, "B/s")

    @property
    def latency(self) -> float:
        """Seconds of a message without content."""
        return self._figure("latency", self.record.latency, "s")

    def seconds(self, size: Any) -> Any:
        """latency + size / usable, for ``size`` bytes: a number or an array."""
        return self.latency + size / self.usable

    def _figure(self, field: str, text: str, unit: str) -> float:
        if field in self.record.unsure:
            _read.add((self.key, field))
        return quantity(text, unit)


def device(key: str) -> Device:
    """The device of that name, such as "a100_40_sxm"; see :func:`devices`."""
    return _find("device", key, devices())


def link(key: str) -> Link:
    """The link of that name, such as "pcie_4_x16"; see :func:`links`."""
    return _find("link", key, links())


@functools.cache
def devices() -> dict[str, Device]:
    return {key: Device(key, _Record.model_validate(record)) for key, record in _file("devices.yaml").items()}


@functools.cache
def links() -> dict[str, Link]:
    return {key: Link(key, _LinkRecord.model_validate(record)) for key, record in _file("links.yaml").items()}


def doubtful() -> list[str]:
    """The figures from memory or a secondary source that were used since the start, in words: "NVIDIA A10G: bandwidth"."""
    known: dict[str, Device | Link] = {**devices(), **links()}
    return sorted(f"{known[key].name}: {field}" for key, field in _read)


def _find(kind: str, key: str, known: dict[str, Any]) -> Any:
    if key not in known:
        raise ValueError(f"no {kind} {key!r}; known are {', '.join(known)}")
    return known[key]


def _file(name: str) -> dict[str, Any]:
    return yaml.safe_load((_HERE / name).read_text(encoding="utf-8"))
