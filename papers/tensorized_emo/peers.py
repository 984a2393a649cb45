"""The same searches by libraries: pymoo and EvoX, on their own versions of the problems, a generation at a time."""

from __future__ import annotations

from typing import Any

import numpy as np

from papers.tensorized_emo.settings import Setting


def begin(library: str, setting: Setting, number: int, seed: int) -> Pymoo | Evox:
    """The setting's algorithm in pymoo or EvoX, on DTLZ ``number``."""
    return (Pymoo if library == "pymoo" else Evox)(setting, number, seed)


def final(library: str, setting: Setting, number: int, seed: int, generations: int) -> np.ndarray:
    """The objectives after so many generations."""
    one = begin(library, setting, number, seed)
    for _ in range(generations):
        one.advance()
    return one.objectives()


class Pymoo:
    def __init__(self, setting: Setting, number: int, seed: int) -> None:
        from pymoo.algorithms.moo.moead import MOEAD
        from pymoo.algorithms.moo.nsga3 import NSGA3
        from pymoo.decomposition.pbi import PBI
        from pymoo.operators.crossover.sbx import SBX
        from pymoo.operators.mutation.pm import PM
        from pymoo.problems import get_problem

        # Of each individual one gene in the mean is mutated; pymoo's own default leaves a tenth of them alone.
        same = {"crossover": SBX(prob=1.0, eta=20), "mutation": PM(prob=1.0, eta=20)}
        if setting.algorithm == "nsga3":
            self.algorithm: Any = NSGA3(setting.references, pop_size=setting.n, **same)
        else:
            self.algorithm = MOEAD(
                setting.references,
                n_neighbors=setting.neighbours.shape[1],
                decomposition=PBI(theta=5),
                prob_neighbor_mating=1.0,
                **same,
            )
        problem = get_problem(f"dtlz{number}", n_var=setting.problem.d, n_obj=setting.problem.m)
        self.algorithm.setup(problem, termination=("n_gen", 10**9), seed=seed, verbose=False)
        # MOEA/D yields after each child.
        self.turns = setting.n if setting.algorithm == "moead" else 1
        self.algorithm.next()

    def advance(self) -> None:
        for _ in range(self.turns):
            self.algorithm.next()

    def objectives(self) -> np.ndarray:
        return self.algorithm.pop.get("F")


class Evox:
    def __init__(self, setting: Setting, number: int, seed: int) -> None:
        import torch
        from evox.algorithms import mo
        from evox.problems.numerical import dtlz
        from evox.workflows import StdWorkflow

        torch.manual_seed(seed)
        d, m = setting.problem.d, setting.problem.m
        bounds = {"lb": torch.zeros(d), "ub": torch.ones(d)}
        name = {"nsga3": "NSGA3", "moead": "MOEAD", "hype": "HypE"}[setting.algorithm]
        extra = {"n_sample": setting.samples} if name == "HypE" else {}
        algorithm = getattr(mo, name)(setting.size, m, **bounds, **extra)
        self.workflow = StdWorkflow(algorithm, getattr(dtlz, f"DTLZ{number}")(d=d, m=m))
        self.workflow.init_step()

    def advance(self) -> None:
        import torch

        # NSGA-III's second stage is a torch.while_loop, which outside of a compiled program is traced anew at every call:
        # 99 % of a generation of 91 individuals. As a plain loop it does the same in a hundredth of the time.
        traced, torch.while_loop = torch.while_loop, _loop
        try:
            self.workflow.step()
        finally:
            torch.while_loop = traced

    def objectives(self) -> np.ndarray:
        return self.workflow.algorithm.fit.double().numpy()


def _loop(condition: Any, body: Any, carried: Any) -> Any:
    while condition(*carried):
        carried = body(*carried)
    return carried
