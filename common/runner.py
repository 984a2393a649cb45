"""Runs a paper: seeds, progress, checkpoints, results, verdicts and records.

A paper gives ``PRESETS`` in its ``config.py`` and ``measure(config, run) -> {claim: value}`` in its ``reproduce.py``;
``measure`` never sees the ledger. The command line is in :mod:`common.command_line`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from common import ROOT, UserError, hardware, meter
from common.checkpoint import Checkpoint, write_whole
from common.distributed.place import started
from common.ledger import NotRun, Value
from common.locks import exclusive, outputs
from common.machine import gpu, machine, revision, versions
from common.plain import plain

T = TypeVar("T")


@dataclass
class Run:
    """What ``measure(config, run)`` may ask.

    Attributes:
        folder: where the figures of this run go.
        alone: whether timings mean something: the run has the machine to itself.
        busy: what stands for the value of a timing claim when it does not.
    """

    slug: str
    folder: Path
    key: str
    only: frozenset[str] | None = None
    quiet: bool = False
    busy: NotRun | None = None
    details: dict[str, Any] = field(default_factory=dict)
    data: dict[str, str] = field(default_factory=dict)

    @property
    def alone(self) -> bool:
        return self.busy is None

    def wants(self, *claims: str) -> bool:
        """Whether any of these claims is asked for; a control or a test skips the rest."""
        return self.only is None or not self.only.isdisjoint(claims)

    def track(self, items: Iterable[T], label: str) -> Iterator[T]:
        """The items, with a progress bar."""
        if self.quiet or not sys.stderr.isatty():
            if not self.quiet:
                print(f"{self.slug}: {label}", file=sys.stderr, flush=True)
            yield from items
            return
        from rich.console import Console
        from rich.progress import track

        yield from track(items, f"{self.slug}: {label}", console=Console(stderr=True), transient=True)

    def require_gpu(self, why: str) -> None:
        """Refuse to start what would never end here."""
        if gpu() is None:
            raise UserError(f"{why} needs a GPU, and torch sees none here; take preset=laptop, or make it smaller")

    def checkpoint(self, name: str) -> Checkpoint:
        """A place to keep a part of this run; it is found again only by the same configuration and sources."""
        return Checkpoint(self.folder / "checkpoints" / f"{name}-{self.key[:12]}.safetensors")

    @contextlib.contextmanager
    def timing(self) -> Iterator[None]:
        """Around every timing: if other processes are at work meanwhile, this run no longer counts as alone."""
        with meter.others() as cores:
            yield
            used = cores()
        # The other ranks of a launcher are at work on the same run.
        if self.busy is None and used > meter.BUSY_CORES and not started():
            self.busy = NotRun(f"machine busy: other processes used {used:.1f} cores during a timing", busy=True)

    def figure(self, name: str, draw: Callable[[], Any]) -> None:
        """Keep the matplotlib figure that ``draw()`` returns as ``<name>.png``; a run of a few claims draws none."""
        if self.only is not None:
            return
        import matplotlib.pyplot as plt

        figure = draw()
        figure.savefig(self.folder / f"{name}.png", dpi=130, bbox_inches="tight", metadata={"Software": None})
        plt.close(figure)

    def keep(self, name: str, value: Any) -> None:
        """Keep a series or table that is no claim, for the notebook and the report."""
        self.details[name] = plain(value)

    def used(self, name: str, source: str, sha256: str) -> None:
        """Name data or weights that this run has used."""
        self.data[name] = f"{source} sha256:{sha256}"


def presets(slug: str) -> dict[str, Any]:
    """The presets of a paper by name."""
    if not (ROOT / "papers" / slug / "config.py").exists():
        known = ", ".join(papers()) or "none"
        raise UserError(f"there is no paper {slug!r}; there are: {known}")
    return importlib.import_module(f"papers.{slug}.config").PRESETS


def papers() -> list[str]:
    """The slugs of all papers that have a ledger."""
    return sorted(path.parent.name for path in ROOT.glob("papers/*/expected.yaml"))


def execute(slug: str, preset: str, config: Any, run: Run) -> dict[str, Any]:
    """Measure and return the results: values, details, versions, machine, data, time and memory. No verdicts."""
    measure = importlib.import_module(f"papers.{slug}.reproduce").measure
    random.seed(config.seed)
    np.random.seed(config.seed)  # noqa: NPY002 - libraries that still draw from the global generator
    if torch := sys.modules.get("torch"):
        torch.manual_seed(config.seed)
    start = time.perf_counter()
    values: Mapping[str, Value] = measure(config, run)
    return {
        "slug": slug,
        "preset": preset,
        "config": plain(dataclasses.asdict(config)),
        "claims": {name: plain(value) for name, value in values.items()},
        "busy": plain(run.busy),
        "details": run.details,
        "data": run.data,
        "unsure": hardware.doubtful(),
        "seconds": round(time.perf_counter() - start, 1),
        "peak_memory_bytes": meter.peak_memory(),
        "versions": versions(),
        "machine": machine(),
        "date": time.strftime("%Y-%m-%d"),
        "revision": revision(),
    }


def prepare(slug: str, config: Any, folder: Path, **options: Any) -> Run:
    """A run whose output folder exists and can be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(
            f"cannot write to {folder} ({error.strerror}); make it writable or set REPRODUCTION_OUTPUTS to another folder"
        ) from error
    return Run(slug, folder, key(slug, config), **options)


def finish(run: Run, results: dict[str, Any]) -> None:
    """Write ``results.json`` whole and drop the checkpoints, which a finished run no longer needs."""
    write_whole(run.folder / "results.json", (json.dumps(results, indent=1) + "\n").encode())
    for old in (run.folder / "checkpoints").glob("*.safetensors"):
        old.unlink()
    with contextlib.suppress(OSError):
        (run.folder / "checkpoints").rmdir()


def run_or_load(
    slug: str, preset: str = "smoke", control: Mapping[str, Any] | None = None, only: Iterable[str] | None = None
) -> dict[str, Any]:
    """The results of a run whose ledger was out of reach, made once and kept; what tests and notebooks read.

    The run happens in a fresh process in which opening a ledger raises, so no value can come from it.
    """
    config = configure(slug, preset, control or {})
    folder = outputs() / ".kept" / slug / f"{preset}-{key(slug, config, only)[:16]}"
    with exclusive(folder, quiet=True):
        if not (folder / "results.json").exists():
            names = None if only is None else sorted(only)
            request = {"slug": slug, "preset": preset, "control": dict(control or {}), "folder": str(folder), "only": names}
            if errors := _closed(request):
                raise RuntimeError(f"{slug}: the {preset} run with the ledger closed failed:\n{errors[-4000:]}")
        return json.loads((folder / "results.json").read_text())


def configure(slug: str, preset: str, overrides: Mapping[str, Any]) -> Any:
    """A preset with some fields changed."""
    known = presets(slug)
    if preset not in known:
        raise UserError(f"{slug} has no preset {preset!r}; it has {', '.join(known)}")
    fields = {each.name for each in dataclasses.fields(known[preset])}
    if unknown := sorted(set(overrides) - fields):
        raise UserError(f"{slug} has no option {unknown[0]!r}; it has {', '.join(sorted(fields))}")
    return dataclasses.replace(known[preset], **{name: _like(known[preset], name, value) for name, value in overrides.items()})


def _like(config: Any, name: str, value: Any) -> Any:
    """An override from a YAML file as the option's own type: the names of an Enum become its members."""
    kind = type(getattr(config, name))
    if not issubclass(kind, Enum) or isinstance(value, kind):
        return value
    if value not in kind.__members__:
        raise UserError(f"{name} is {value!r}; wanted one of {', '.join(kind.__members__)}")
    return kind[value]


def key(slug: str, config: Any, only: Iterable[str] | None = None) -> str:
    """A hash of everything that a result depends on: configuration, sources and package versions."""
    whole = hashlib.sha256(json.dumps(plain(dataclasses.asdict(config)), sort_keys=True).encode())
    files = [p for part in ("common", "kernels", f"papers/{slug}") for p in (ROOT / part).rglob("*.py")]
    for path in sorted([*files, *(ROOT / "common").rglob("*.yaml")]):
        whole.update(str(path.relative_to(ROOT)).encode() + path.read_bytes())
    whole.update(json.dumps([versions(), None if only is None else sorted(only)]).encode())
    return whole.hexdigest()


def _closed(request: dict[str, Any]) -> str:
    """Make one measurement in a process whose ledger is closed; what it said before it failed, or nothing."""
    command: dict[str, Any] = {
        "args": [sys.executable, "-m", "common.runner"],
        "env": {**os.environ, "REPRODUCTION_LEDGER": "closed", "MPLBACKEND": "agg"},
        "cwd": ROOT,
        "text": True,
    }
    if not _FORKS:
        done = subprocess.run(**command, input=json.dumps(request) + "\n", capture_output=True)
        return done.stderr if done.returncode else ""
    with _serving:
        server = _servers.get(ROOT)
        if server is None or server.poll() is not None:
            server = _servers[ROOT] = subprocess.Popen(**command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert server.stdin and server.stdout
        server.stdin.write(json.dumps(request) + "\n")
        server.stdin.flush()
        answer = server.stdout.readline()
    return json.loads(answer) if answer else "the process that starts runs has ended"


_FORKS = sys.platform == "linux"  # elsewhere system libraries do not survive it
_servers: dict[Path, subprocess.Popen[str]] = {}
_serving = threading.Lock()


def _serve() -> None:
    """Import the frameworks once, then fork a fresh process for each request of standard input, until that ends."""
    if not _FORKS:
        _measure_closed(json.loads(sys.stdin.readline()))
        return
    for name in ("torch._dynamo", "flax.nnx", "optax", "numba", "scipy.stats", "matplotlib.pyplot"):
        importlib.import_module(name)  # nine seconds; none starts a thread, which a fork would lose
    for line in sys.stdin:
        with tempfile.TemporaryFile() as said:
            pid = os.fork()
            if pid == 0:
                os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
                os.dup2(said.fileno(), 1)
                os.dup2(said.fileno(), 2)
                _measure_closed(json.loads(line))
                return  # and end as any process does
            _, status = os.waitpid(pid, 0)
            said.seek(0)
            text = said.read().decode(errors="replace") or f"exit status {os.waitstatus_to_exitcode(status)}"
        print(json.dumps(text if status else ""), flush=True)


def _measure_closed(request: dict[str, Any]) -> None:
    """One measurement for :func:`run_or_load`."""
    config = configure(request["slug"], request["preset"], request["control"])
    only = None if request["only"] is None else frozenset(request["only"])
    under_test = NotRun("timings are not taken under the test runner", busy=True)
    run = prepare(request["slug"], config, Path(request["folder"]), only=only, quiet=True, busy=under_test)
    finish(run, execute(request["slug"], request["preset"], config, run))


if __name__ == "__main__":
    try:
        _serve()
    except KeyboardInterrupt:  # how a notebook's kernel is stopped, and all that it has started
        sys.exit(130)
