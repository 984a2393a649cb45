"""``python -m papers.tempi.interpose run program.py [its arguments]``: run an unchanged mpi4py program under the layer."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

from papers.tempi.interpose import install


def main(arguments: list[str]) -> int:
    if len(arguments) < 2 or arguments[0] != "run":
        print("usage: python -m papers.tempi.interpose run program.py [its arguments]", file=sys.stderr)
        return 2
    program = Path(arguments[1])
    if not program.is_file():
        print(f"interpose: there is no program {program}; give the path of a Python file", file=sys.stderr)
        return 2
    try:
        install()
    except ValueError as error:
        print(f"interpose: {error}", file=sys.stderr)
        return 2
    sys.argv = arguments[1:]
    sys.path[0] = str(program.resolve().parent)
    runpy.run_path(str(program), run_name="__main__")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
