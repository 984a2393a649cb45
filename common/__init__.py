"""The ground floor: what every paper and every kernel stands on, knowing neither."""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
"""The checkout: papers/, kernels/, common/, data/, outputs/ are below it."""


class UserError(Exception):
    """Something the user can put right; its text is the one sentence that is shown."""


def _refuse_ledgers(event: str, arguments: tuple) -> None:
    if event == "open" and str(arguments[0]).endswith(("expected.yaml", "recorded.json")):
        raise PermissionError(f"the ledger is closed while a paper is measured: {arguments[0]}")


# A measurement that could read the published figure would prove nothing. Honest runs happen in a process that
# starts with this variable set: there no ledger can be opened, by any means, and child processes inherit it.
if os.environ.get("REPRODUCTION_LEDGER") == "closed":
    sys.addaudithook(_refuse_ledgers)
