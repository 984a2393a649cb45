"""MPI programs as child processes: started by mpiexec, ended whole when they take too long, their results read as JSON."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common import ROOT

HALO = Path(__file__).parent / "apps" / "halo3d.py"


class MPIError(RuntimeError):
    """An MPI program that failed or took too long."""


def mpiexec() -> str | None:
    """The mpiexec that goes with this Python's MPI library."""
    beside = Path(sys.executable).with_name("mpiexec")
    return str(beside) if beside.exists() else shutil.which("mpiexec")


@functools.cache
def unavailable() -> str | None:
    """Why no MPI program can start here, or None."""
    if mpiexec() is None:
        return "there is no mpiexec; install the packages mpi4py and mpich"
    try:
        start(["-c", "from mpi4py import MPI; MPI.COMM_WORLD.Barrier()"], 2, timeout=60)
    except MPIError as error:
        return f"MPI does not start here: {error}"
    return None


def start(
    program: Sequence[str],
    ranks: int,
    *,
    timeout: int | float,
    environment: Mapping[str, str] | None = None,
    odd: Sequence[str] | None = None,
) -> str:
    """Run ``python program`` in so many ranks and return what they print; every second rank runs ``odd`` if it is given.

    Each rank has one thread. On any way out no process is left.

    Raises:
        MPIError: the program failed, with the end of what it printed, or took longer than ``timeout`` seconds.
    """
    if odd is None:
        parts = [["-n", str(ranks), sys.executable, *program]]
    else:
        parts = [["-n", "1", sys.executable, *(odd if rank % 2 else program)] for rank in range(ranks)]
    command = [str(mpiexec()), *parts[0], *(word for part in parts[1:] for word in (":", *part))]
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("TEMPI_", "PMI_", "PMIX_", "HYDRA_"))}
    child = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**clean, **threads, "PYTHONPATH": path, **(environment or {})},
        start_new_session=True,
    )
    try:
        out, error = child.communicate(timeout=timeout)
    except subprocess.TimeoutExpired as late:
        raise MPIError(f"{ranks} ranks did not end within {timeout:g} s") from late
    finally:
        # The ranks are of mpiexec's session: whatever is left of it goes with it.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
    if child.returncode:
        raise MPIError(f"exit {child.returncode}: {(error or out)[-2000:].strip()}")
    return out


def ask(
    task: str, ranks: int, options: Mapping[str, Any], *, timeout: int | float, environment: Mapping[str, str] | None = None
) -> Any:
    """What ``papers.tempi.inside.<task>(**options)`` returns on rank 0."""
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        start(
            ["-m", "papers.tempi.inside", task, json.dumps(dict(options)), str(answer)],
            ranks,
            timeout=timeout,
            environment=environment,
        )
        return json.loads(answer.read_text())


def halo(
    ranks: int,
    *,
    layer: bool,
    timeout: int | float,
    half: bool = False,
    environment: Mapping[str, str] | None = None,
    **options: int,
) -> dict[str, Any]:
    """The halo exchange, the same file with the layer (on ``half`` of the ranks) or without it."""
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "times.json"
        plain = [str(HALO), *words, "--out", str(out)]
        under = ["-m", "papers.tempi.interpose", "run", *plain] if layer else plain
        start(under, ranks, timeout=timeout, environment=environment, odd=plain if half else None)
        return json.loads(out.read_text())
