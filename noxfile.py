"""nox looks for this name; the sessions are in nox.py."""

import runpy
from pathlib import Path

globals().update(runpy.run_path(str(Path(__file__).with_name("nox.py")), run_name="noxfile"))
