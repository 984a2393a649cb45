"""Tasks that wait for each other on resources that serve in order: when does each begin and end?"""

from __future__ import annotations

import heapq
from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .timeline import Time, Timeline


@dataclass(frozen=True)
class Task:
    """Work of a resource for some time.

    Attributes:
        after: names of tasks that must have ended; they may stand anywhere in the list.
        arguments: kept with its span (bytes, layer, ...).
    """

    name: str
    resource: str
    duration: Time
    after: tuple[str, ...] = ()
    arguments: dict[str, Any] = field(default_factory=dict)


def schedule(tasks: Sequence[Task], capacity: Mapping[str, int] | None = None, unit: float = 1.0) -> Timeline:
    """Run tasks: each resource serves its own in the order of the list, the next one when it is free and the task may begin.

    Args:
        capacity: how many tasks a resource serves at once (1 if not named), such as the depth of an I/O queue.
        unit: seconds of one unit of time.

    Raises:
        ValueError: two tasks of one name, an unknown task to wait for, a negative duration, or tasks that wait for each other
            in a circle (a resource's own order counts).
    """
    by_name = {task.name: i for i, task in enumerate(tasks)}
    if len(by_name) < len(tasks):
        raise ValueError("two tasks have one name; names are how tasks wait for each other, so give each its own")
    followers: dict[int, list[int]] = defaultdict(list)
    missing = []
    queues: dict[str, deque[int]] = defaultdict(deque)
    for i, task in enumerate(tasks):
        if task.duration < 0:
            raise ValueError(f"task {task.name!r} takes {task.duration}; wanted 0 or more")
        for name in task.after:
            if name not in by_name:
                raise ValueError(f"task {task.name!r} waits for {name!r}, which is not in the list")
            followers[by_name[name]].append(i)
        missing.append(len(task.after))
        queues[task.resource].append(i)
    free = {resource: (capacity or {}).get(resource, 1) for resource in queues}
    ends: list[tuple[Time, int]] = []
    line, waking = Timeline(unit=unit), list(queues)
    now: Time = 0
    done = 0
    while True:
        for resource in waking:
            while free[resource] and queues[resource] and not missing[queues[resource][0]]:
                i = queues[resource].popleft()
                free[resource] -= 1
                line.add(resource, tasks[i].name, now, now + tasks[i].duration, **tasks[i].arguments)
                heapq.heappush(ends, (now + tasks[i].duration, i))
        if not ends:
            break
        now, ended = heapq.heappop(ends)
        done += 1
        free[tasks[ended].resource] += 1
        for i in followers[ended]:
            missing[i] -= 1
        waking = list(dict.fromkeys([tasks[ended].resource, *(tasks[i].resource for i in followers[ended])]))
    if done < len(tasks):
        stuck = next(queue[0] for queue in queues.values() if queue)
        raise ValueError(f"task {tasks[stuck].name!r} never begins: it waits, at last, for itself")
    return line
