"""Who may write where, and who has the machine: file locks that say for whom they wait."""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from common import ROOT, UserError, meter
from common.ledger import NotRun


def outputs() -> Path:
    """Where results go: ``outputs/`` in the checkout, or the folder that REPRODUCTION_OUTPUTS names."""
    return Path(os.environ.get("REPRODUCTION_OUTPUTS") or ROOT / "outputs").resolve()


@contextlib.contextmanager
def exclusive(folder: Path, quiet: bool = False) -> Iterator[None]:
    """Hold an output folder; a second run waits and says for which process."""
    path = outputs() / ".locks" / f"{hashlib.sha256(str(folder).encode()).hexdigest()[:16]}.lock"
    owner = path.with_suffix(".pid")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            if not quiet:
                holder = owner.read_text() if owner.exists() else "unknown"
                print(f"waiting for process {holder}, which writes to {folder}", file=sys.stderr, flush=True)
            lock.acquire()
    except OSError as error:
        raise UserError(
            f"cannot write to {path.parent} ({error.strerror}); set REPRODUCTION_OUTPUTS to a folder that can be written"
        ) from error
    try:
        owner.write_text(str(os.getpid()))
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def machine_to_itself() -> Iterator[NotRun | None]:
    """Yields None if this run has the machine to itself, else the reason why its timings would mean nothing."""
    lock = FileLock(Path(tempfile.gettempdir()) / "paper-reproductions-alone.lock", mode=0o666)
    try:
        lock.acquire(timeout=0)
    except (Timeout, OSError):
        yield NotRun("machine busy: another reproduction is running", busy=True)
        return
    try:
        load = meter.load_now()
        limit = (os.cpu_count() or 1) / 2
        busy = NotRun(f"machine busy: other processes use {load:.1f} cores", busy=True)
        yield busy if load >= limit else None
    finally:
        lock.release()
