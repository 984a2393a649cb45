"""Values as JSON keeps them, and back."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np

from common.ledger import NotRun


def plain(value: Any) -> Any:
    """The value in JSON's types."""
    if isinstance(value, NotRun):
        return {"not_run": value.reason, "busy": value.busy}
    if isinstance(value, Mapping):
        return {str(name): plain(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(each) for each in value]
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Enum):
        return value.name
    return str(value) if isinstance(value, Path) else value


def from_plain(value: Any) -> Any:
    """A claim's value as it was before :func:`plain`."""
    return NotRun(value["not_run"], value["busy"]) if isinstance(value, dict) and "not_run" in value else value
