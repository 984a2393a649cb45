"""Which machine, which versions, which revision: what makes a recorded number mean something."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import psutil

from common import ROOT

_PACKAGES = ("torch", "jax", "jaxlib", "flax", "optax", "triton", "numpy", "scipy", "numba", "einops", "mpi4py", "mpich")


@functools.cache
def machine() -> dict[str, Any]:
    """CPU, cores, memory and, where torch is loaded and sees one, the GPU."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = (line for line in info.read_text(encoding="utf-8").splitlines() if line.startswith("model name"))
        cpu = next(names, cpu).rpartition(":")[2].strip()
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "gpu": gpu(),
    }


def interpret_triton_without_gpu() -> None:
    """Have Triton kernels interpreted on a machine without a GPU; call it before triton is imported."""
    if not any(Path(device).exists() for device in ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")):
        os.environ.setdefault("TRITON_INTERPRET", "1")


def gpu() -> str | None:
    """The name of the first GPU that torch sees, or None."""
    import torch

    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else None


@functools.cache
def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def revision() -> dict[str, Any]:
    """The commit, and the tracked files that differ from it; both empty outside a git checkout."""
    commit, changed = _git("rev-parse", "HEAD"), _git("status", "--porcelain")
    return {"commit": (commit or "").strip(), "changed": [line[3:] for line in (changed or "").splitlines()]}


def _git(*words: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout if done.returncode == 0 else None
