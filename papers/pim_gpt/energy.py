"""Energy of a trace from the currents of a data sheet, the pins and the companion chip."""

from __future__ import annotations

import numpy as np

from papers.pim_gpt import published
from papers.pim_gpt.simulator import C, Command, Trace


def energy(trace: Trace) -> dict[str, float]:
    """Joules by part.

    rows: VDD (IDD0 tRC - IDD3N tRAS - IDD2N tRP) for each bank that opens a row; units: a column access of all banks draws
    ``MAC_OVER_READ`` times the current of a read beyond standby; standby: IDD3N all the time (rows are nearly always open);
    pins: energy a bit; companion: its peak power all the time. (Micron TN-41-01's terms; factors from :mod:`published`.)
    """
    i, t, m = published.CURRENTS, trace.machine.timing, trace.machine
    pico = 1e-12 * published.VOLTAGE  # mA ns V
    opened = trace.of(Command.ACT)
    banks = int(np.where(opened[:, C["bank"]] < 0, m.banks, 1).sum())
    columns = int(trace.of(Command.MAC)[:, C["count"]].sum())

    def lasted(command: Command) -> int:
        rows = trace.of(command)
        return int((rows[:, C["end"]] - rows[:, C["start"]]).sum())

    return {
        "rows": pico * banks * (i["IDD0"] * t.cycle - i["IDD3N"] * t.open - i["IDD2N"] * t.precharge),
        "units": pico * columns * t.column * published.MAC_OVER_READ * (i["IDD4R"] - i["IDD3N"]),
        "single banks": pico * (lasted(Command.WR) * (i["IDD4W"] - i["IDD3N"]) + lasted(Command.RD) * (i["IDD4R"] - i["IDD3N"])),
        "refresh": pico * lasted(Command.REF) * (i["IDD5"] - i["IDD3N"]),
        "standby": pico * i["IDD3N"] * trace.finish * m.channels,
        "pins": 8e-12 * published.PIN_ENERGY * trace.bytes()["moved"],
        "companion": 1e-9 * published.ASIC["watts"] * trace.finish,
    }
