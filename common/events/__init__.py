"""What simulators share: lines of spans in time, their pictures and trace files, and tasks that wait for each other."""

from __future__ import annotations

from .schedule import Task, schedule
from .timeline import Span, Timeline

__all__ = ["Span", "Task", "Timeline", "schedule"]
