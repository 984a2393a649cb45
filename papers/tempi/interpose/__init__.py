"""A layer between mpi4py programs and the MPI library: put in place of ``mpi4py.MPI`` before the program imports it.

    mpiexec -n 4 python -m papers.tempi.interpose run program.py --its options

mpi4py's classes are compiled and cannot be changed, so the layer has subclasses of them and a module that offers these
under the old names. Programs stay as they are; ranks with the layer and ranks without it understand each other.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any


def install(environment: Any = None) -> ModuleType:
    """Put the layer in place of ``mpi4py.MPI`` (unless TEMPI_DISABLE is set) and return the module.

    Call it before the program imports ``mpi4py.MPI``. A second call starts a fresh layer with the switches of now.
    """
    import os

    import mpi4py
    from mpi4py import MPI

    from papers.tempi.interpose import classes, layer

    real = MPI.real if isinstance(MPI, _Proxy) else MPI
    layer.LAYER = layer.Layer(layer.Settings.of(os.environ if environment is None else environment))
    found: ModuleType = real if layer.LAYER.settings.disable else _Proxy(real, classes, layer)
    sys.modules["mpi4py.MPI"] = mpi4py.MPI = found  # type: ignore[assignment]
    return found


class _Proxy(ModuleType):
    """``mpi4py.MPI`` with the layer's classes, and its constants as objects of these."""

    def __init__(self, real: ModuleType, classes: Any, layer: ModuleType) -> None:
        super().__init__(real.__name__, real.__doc__)
        self.real, self.layer = real, layer
        for name in ("Datatype", "Request", "Intracomm", "Cartcomm", "Graphcomm", "Distgraphcomm"):
            setattr(self, name, getattr(classes, name))
        for name, value in vars(real).items():
            wrapped = classes.wrap(value)
            if wrapped is not value:
                setattr(self, name, wrapped)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def __dir__(self) -> list[str]:
        return dir(self.real)
