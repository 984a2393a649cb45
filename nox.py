"""Sessions: `nox -s reproduce-<paper>`, `nox -s tests`, `nox -l` for all. Words after `--` go to the session's command.

All sessions share one virtual environment, `.venv`, built in layers from pyproject.toml under constraints.txt. A layer
is stamped when it is complete, so a second run of a session starts the paper's own code at once.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import subprocess
import sys
import venv
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent


def _real_nox():
    """The package nox, although this file has its name."""
    have = sys.modules.get("nox")
    if have and Path(have.__file__ or ".").resolve() != Path(__file__).resolve():
        return have
    saved = sys.path[:]
    sys.modules.pop("nox", None)
    sys.path[:] = [p for p in sys.path if Path(p or ".").resolve() != ROOT]
    try:
        import nox
    finally:
        sys.path[:] = saved
    return nox


nox = _real_nox()
nox.options.default_venv_backend = "none"
nox.options.sessions = ["tests"]
nox.options.error_on_missing_interpreters = False

VENV = Path(os.environ.get("REPRODUCTION_VENV") or ROOT / ".venv").resolve()
PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
LAYERS = {"core": "", "lab": "[lab]", "tests": "[lab,dev,peers]"}
_MARK = VENV.with_name(f"{VENV.name}.built-here")
PAPERS = sorted(path.parent.name for path in ROOT.glob("papers/*/expected.yaml"))


def environment(session: nox.Session, layer: str) -> None:
    """Make sure that a layer is in the shared environment, and put the environment on the session's path."""
    with _locked(session):
        if not PYTHON.exists() or not _stamp("python").exists() or _stamp("python").read_text() != sys.version:
            if Path(sys.prefix).resolve() == VENV:
                session.error(f"nox runs from {VENV}, which it would have to build anew; run it from another Python")
            if VENV.exists() and not _MARK.exists():
                session.error(
                    f"{VENV} was not built by these sessions; move it away, or name another folder in REPRODUCTION_VENV"
                )
            session.log(f"building {VENV.name} with Python {sys.version.split()[0]} (once)")
            _MARK.touch()
            venv.create(VENV, clear=True, with_pip=True)
            _stamp("python").write_text(sys.version)
        done = {name: _stamp(name).exists() and _stamp(name).read_text() == _wanted() for name in LAYERS}
        # A later layer holds all of the earlier ones.
        if not any(done[name] for name in list(LAYERS)[list(LAYERS).index(layer) :]):
            session.log(f"installing the packages of layer {layer!r} (once; some minutes on a slow network)")
            _stamp(layer).unlink(missing_ok=True)
            session.run(
                str(PYTHON), "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
                "-c", str(ROOT / "constraints.txt"), "-e", f"{ROOT}{LAYERS[layer]}", external=True,
            )  # fmt: skip
            _stamp(layer).write_text(_wanted())
    session.env["VIRTUAL_ENV"] = str(VENV)
    session.env["PATH"] = f"{PYTHON.parent}{os.pathsep}{os.environ['PATH']}"
    session.env["PYTHONWARNINGS"] = os.environ.get("PYTHONWARNINGS", "")
    session.chdir(ROOT)


def run(session: nox.Session, *words: str, **options: object) -> None:
    session.run(str(PYTHON), *words, external=True, **options)


def _stamp(layer: str) -> Path:
    return VENV / f".layer-{layer}"


def _wanted() -> str:
    whole = hashlib.sha256(sys.version.encode())
    for name in ("pyproject.toml", "constraints.txt"):
        whole.update((ROOT / name).read_bytes())
    return whole.hexdigest()


@contextlib.contextmanager
def _locked(session: nox.Session) -> Iterator[None]:
    """One session builds; others wait for it."""
    path = VENV.with_name(f"{VENV.name}.lock")
    with path.open("a") as file:
        if os.name == "nt":
            import msvcrt

            msvcrt.locking(file.fileno(), msvcrt.LK_LOCK, 1)
        else:
            import fcntl

            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                session.log("waiting for another session that builds the environment")
                fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _reproduce(slug: str):
    def reproduce(session: nox.Session) -> None:
        environment(session, "core")
        run(session, "-m", f"papers.{slug}.reproduce", *session.posargs)

    reproduce.__doc__ = f"Run {slug} and hold its claims against what is found (default preset: laptop)."
    return reproduce


for _slug in PAPERS:
    nox.session(name=f"reproduce-{_slug.replace('_', '-')}")(_reproduce(_slug))


@nox.session(name="reproduce-all")
def reproduce_all(session: nox.Session) -> None:
    """Every paper at preset smoke; goes on after a failure and names what failed."""
    environment(session, "core")
    words = session.posargs or ["preset=smoke"]
    failed = [s for s in PAPERS if subprocess.run([PYTHON, "-m", f"papers.{s}.reproduce", *words], cwd=ROOT).returncode]
    if failed:
        session.error(f"worse than recorded or not run: {', '.join(failed)}")


def _pytest(session: nox.Session, *words: str) -> None:
    environment(session, "tests")
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
        session.env[name] = "1"  # one thread for each worker
    run(session, "-m", "pytest", *words, *session.posargs)


@nox.session
def tests(session: nox.Session) -> None:
    """Every test that fits into a change: agreement, honesty, smoke runs, notebooks."""
    _pytest(session, "-n", "auto", "--dist", "loadgroup", "-m", "not slow and not gpu")


@nox.session(name="tests-full")
def tests_full(session: nox.Session) -> None:
    """The slow ones too: every compile target, dear controls."""
    _pytest(session, "-n", "auto", "--dist", "loadgroup", "-m", "not gpu")


@nox.session
def gpu(session: nox.Session) -> None:
    """Tests and benchmarks that need a GPU; says so where there is none."""
    environment(session, "tests")
    look = "import torch, sys; sys.exit(0 if torch.cuda.is_available() else 3)"
    if subprocess.run([PYTHON, "-c", look]).returncode:
        session.error("torch sees no GPU here; on a machine with one, install a CUDA or ROCm build of torch into .venv first")
    run(session, "-m", "pytest", "-m", "gpu", *session.posargs)
    run(session, "-m", "common.bench")


@nox.session
def lint(session: nox.Session) -> None:
    """Format and lint (notebooks too), types of common/ and kernels/, who may import whom."""
    environment(session, "tests")
    fix = "--fix" in session.posargs
    run(session, "-m", "ruff", "format", *([] if fix else ["--check"]), ".")
    run(session, "-m", "ruff", "check", *(["--fix"] if fix else []), ".")
    run(session, "-m", "mypy", "common", "kernels")
    session.run(str(PYTHON.with_name("lint-imports")), "--cache-dir", ".import_linter_cache", external=True)


@nox.session
def notebooks(session: nox.Session) -> None:
    """Execute notebooks; `-- --update <slug> ...` rewrites their outputs in place."""
    environment(session, "tests")
    run(session, "-m", "common.notebooks", *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """Speed of every operation beside what a user would take instead; `-- <words>` picks operations by name."""
    environment(session, "tests")
    run(session, "-m", "common.bench", *session.posargs)


@nox.session(name="train-zoo")
def train_zoo(session: nox.Session) -> None:
    """Train a model of the zoo from its recipe: `-- byte_lm.v1`; `-- --help` lists them."""
    environment(session, "core")
    run(session, "-m", "common.zoo.train", *session.posargs)


@nox.session(name="new-paper")
def new_paper(session: nox.Session) -> None:
    """Write a room, a notebook and a test file for a new paper: `-- <slug>`."""
    environment(session, "core")
    run(session, "-m", "common.new_paper", *session.posargs)


@nox.session
def report(session: nox.Session) -> None:
    """Write the page of all results, outputs/report/index.html; `-- --readme` also refreshes the README tables."""
    environment(session, "core")
    run(session, "-m", "common.report", *session.posargs)


@nox.session
def lab(session: nox.Session) -> None:
    """Open the notebooks in JupyterLab."""
    environment(session, "lab")
    run(session, "-m", "jupyter", "lab", "notebooks", *session.posargs)


if __name__ == "__main__":
    from nox.__main__ import main

    sys.argv[0] = "nox"
    main()
