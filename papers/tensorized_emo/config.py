"""Options of the reproduction and its three presets."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from common.config import option


class Framework(Enum):
    torch = "torch"
    jax = "jax"


@dataclass(frozen=True)
class Config:
    seed: int = option(2025, "seeds every search and every random set")
    framework: Framework = option(
        Framework.jax, "framework of the tensor forms where one suffices, as in the paper; torch compiles nothing"
    )

    tensorised: bool = option(True, "the tensor forms are measured; False: the sequential originals in their place, a control")
    selects: bool = option(True, "the best survive; False: survivors are drawn by lot, a control")
    tiled: bool = option(True, "dominance in tiles; False: all pairs with all objectives at once, a control")
    weighted: bool = option(True, "HypE weighs a sample by how many share it; False: every sample counts in full, a control")
    twin_bits: int = option(64, "bits of JAX's numbers where two frameworks are compared; 32 is a control")

    twin_generations: int = option(50, "generations over which populations are compared")
    twin_problems: list[int] = option([1, 2], "DTLZ problems there")
    twin_population: int = option(91, "individuals of that")
    merged_sets: int = option(200, "random merged populations whose survivors are compared")

    quality_problems: list[int] = option([1, 2, 3, 4], "DTLZ problems of the quality claims")
    quality_seeds: int = option(5, "seeds of each")
    quality_population: int = option(91, "individuals")
    quality_generations: int = option(100, "generations")
    quality_samples: int = option(1000, "HypE's samples there")
    peer_problems: list[int] = option([1, 2], "DTLZ problems of the comparison with libraries")
    peer_seeds: int = option(5, "seeds of the libraries there")
    workers: int = option(2, "processes that searches are dealt to")

    estimates: int = option(200, "estimates of HypE's fitness that are averaged")

    loop_dimension: int = option(500, "variables of DTLZ1 where tensor forms and loops are timed")
    loop_sizes: list[int] = option([496, 1953], "populations of MOEA/D there")
    loop_population: int = option(1000, "population of NSGA-III and HypE there")
    loop_samples: int = option(10_000, "HypE's samples there")
    peer_sizes: list[int] = option([105, 1035, 4950, 10_011], "populations of the tensor forms beside libraries")
    peer_population: int = option(1035, "population of the bars there; loops over individuals and EvoX end at it")
    scale_sizes: list[int] = option([2048, 4096, 8192], "populations of a selection step, from twice as many, that is timed")
    memory_population: int = option(2**17, "population of a selection step whose memory is counted")
    count_sizes: list[int] = option([496, 1953], "populations at which array elements are counted")
    dimensions: list[int] = option([2**10, 2**12, 2**14, 2**15, 2**16], "numbers of variables of a generation that is timed")
    dimension_population: int = option(100, "individuals there")
    repeats: int = option(5, "measurements of each time, of which the median is taken")

    robots: list[str] = option(["reacher", "integrator"], "robots whose controllers are searched for")
    robot_seeds: int = option(5, "seeds of that")
    robot_population: int = option(64, "individuals")
    robot_generations: int = option(60, "generations")
    robot_steps: int = option(100, "steps of an episode of 0.05 s each")

    def __post_init__(self) -> None:
        least = (
            self.twin_generations, self.merged_sets, self.quality_generations, self.quality_samples, self.workers, self.loop_samples,
            self.repeats, self.robot_seeds, self.robot_generations, self.robot_steps,
        )  # fmt: skip
        if min(least) < 1:
            raise ValueError(f"numbers of generations, samples, steps, workers and repeats start at 1; got {min(least)}")
        if min(self.quality_seeds, self.peer_seeds) < 4:
            raise ValueError("quality_seeds and peer_seeds must be at least 4: of three against three no p is below 0.05")
        if min(self.robot_population, self.dimension_population) < 4:
            raise ValueError("robot_population and dimension_population must be at least 4")
        if self.estimates < 20:
            raise ValueError(f"estimates is {self.estimates}; wanted at least 20, for a standard error")
        populations = (
            self.twin_population, self.quality_population, *self.loop_sizes, self.loop_population, *self.peer_sizes,
        )  # fmt: skip
        if min(populations) < 15:
            raise ValueError(
                f"a population of {min(populations)}; wanted at least 15, the reference points of MOEA/D's least neighbourhoods"
            )
        if not set(self.peer_problems) <= set(self.quality_problems) <= {1, 2, 3, 4}:
            raise ValueError(
                f"peer_problems {self.peer_problems} and quality_problems {self.quality_problems}; wanted DTLZ problems with a known "
                "front, 1 to 4, the first among the second"
            )
        if self.peer_population not in self.peer_sizes[1:] or sorted(self.peer_sizes) != self.peer_sizes:
            raise ValueError(
                f"peer_sizes {self.peer_sizes}, peer_population {self.peer_population}; wanted rising sizes, and one but the first"
            )
        if self.twin_bits not in (32, 64):
            raise ValueError(f"twin_bits is {self.twin_bits}; wanted 32 or 64")
        for name, least_number in (
            ("loop_sizes", 2),
            ("peer_sizes", 2),
            ("scale_sizes", 2),
            ("count_sizes", 2),
            ("dimensions", 3),
        ):
            if len(getattr(self, name)) < least_number:
                raise ValueError(f"{name} is {getattr(self, name)}; wanted at least {least_number} values, for a trend")


PRESETS = {
    # A library's MOEA/D takes 1 ms an individual, a compiled program of JAX seconds.
    "smoke": Config(
        framework=Framework.torch, twin_generations=10, twin_problems=[2], merged_sets=20, quality_problems=[2], quality_seeds=4,
        quality_population=91, quality_generations=20, quality_samples=400, peer_problems=[2], peer_seeds=4, workers=1, estimates=60,
        loop_dimension=100, loop_sizes=[45, 91], loop_population=91, loop_samples=2000, peer_sizes=[45, 91], peer_population=91,
        scale_sizes=[512, 1024, 2048], dimensions=[2**10, 2**11, 2**12, 2**13], repeats=2, robots=["reacher"],
        robot_seeds=2, robot_generations=12, robot_steps=40,
    ),
    "laptop": Config(),
    "paper": Config(
        quality_seeds=31, quality_population=10_000, quality_samples=10_000,
        scale_sizes=[2**14, 2**15, 2**16, 2**17], dimensions=[2**k for k in range(10, 21)], robot_population=10_000,
        robot_seeds=10, robot_generations=100, robot_steps=1000,
        loop_sizes=[496, 1953, 8128], repeats=10,
    ),
}  # fmt: skip
