"""The configuration of a paper: one dataclass, every field with its meaning, shown by ``--help``."""

from __future__ import annotations

import dataclasses
from typing import Any


def option(default: Any, meaning: str, unit: str = "") -> Any:
    """A dataclass field with its meaning and, where it has one, its unit.

        seq_len: int = option(256, "tokens of one training sequence", unit="tokens")

    Lists and dicts become a fresh copy for each instance.
    """
    metadata = {"help": meaning, "unit": unit}
    if isinstance(default, (list, dict)):
        return dataclasses.field(default_factory=lambda: type(default)(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def describe(config: Any) -> list[tuple[str, str, str]]:
    """(name, type, meaning with unit) of every field of a configuration class or instance."""
    rows = []
    for each in dataclasses.fields(config):
        unit = each.metadata.get("unit", "")
        rows.append(
            (
                each.name,
                getattr(each.type, "__name__", str(each.type)),
                each.metadata.get("help", "") + (f" [{unit}]" if unit else ""),
            )
        )
    return rows
