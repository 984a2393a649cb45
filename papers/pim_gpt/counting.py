"""What can be counted without running: operations of a token and of an image, parameters, the lower bound of a token."""

from __future__ import annotations

from common.architecture import Transformer
from common.hardware import counts
from papers.pim_gpt.layout import Layout
from papers.pim_gpt.machine import ELEMENT, Machine


def block_parameters(layout: Layout) -> int:
    """Numbers in the matrices of all blocks, counted in their mappings; 12 layers width^2 of a GPT."""
    return sum(each.outputs * each.inputs for name, each in layout.matrices.items() if name not in ("head", "positions"))


def floor_seconds(layout: Layout) -> float:
    """No token can be faster than one reading of the blocks and the head from all banks."""
    read = block_parameters(layout) + layout.architecture.vocabulary * layout.architecture.width
    return ELEMENT * read / layout.machine.internal_bandwidth


def operations_per_parameter(architecture: Transformer, tokens: int) -> float:
    """Of one generated token, on average over the first ``tokens`` positions; a multiply-add counts two."""
    found = counts.total(counts.operators(architecture, tokens=1, past=(tokens - 1) / 2))
    return float(found.operations / architecture.parameters())


def resnet18(size: int = 224, small: bool = False) -> tuple[int, int]:
    """(operations of one image, parameters) of ResNet-18, He et al. 2016; a multiply-add counts two.

    ``small``: the variant for images of 32 x 32, a first convolution of 3 x 3 without stride or pooling and ten classes.
    """
    multiplied = held = 0

    def convolution(inputs: int, outputs: int, kernel: int, side: int) -> None:
        nonlocal multiplied, held
        multiplied += kernel * kernel * inputs * outputs * side * side
        held += kernel * kernel * inputs * outputs + 2 * outputs  # with scale and shift of the norm behind it

    side = size if small else size // 2
    convolution(3, 64, 3 if small else 7, side)
    side, inputs = side if small else side // 2, 64
    for stage, width in enumerate((64, 128, 256, 512)):
        side = side // 2 if stage else side
        for block in range(2):
            convolution(inputs, width, 3, side)
            convolution(width, width, 3, side)
            if inputs != width and block == 0:
                convolution(inputs, width, 1, side)
            inputs = width
    classes = 10 if small else 1000
    return 2 * (multiplied + inputs * classes), held + inputs * classes + classes


def row_visit(machine: Machine) -> tuple[int, float]:
    """(ns, share of them in which the units multiply) of one full row: opened, read, closed, from a trace of it."""
    import numpy as np

    from papers.pim_gpt.program import FIELDS, F, Op, Program
    from papers.pim_gpt.simulator import simulate

    visit = np.zeros((1, len(FIELDS)), np.int64)
    visit[0, [F["op"], F["count"], F["close"], F["wait"], F["signal"]]] = Op.MAC, machine.columns, 1, -1, -1
    trace = simulate(Program(visit, (), 0), machine)
    return trace.finish, machine.columns * machine.timing.column / trace.finish
