"""Claims about time: a generation of the tensor forms beside loops over individuals and two libraries, in one run."""

from __future__ import annotations

import importlib.util
import math
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from common.ledger import NotRun, Value
from common.meter import median_seconds
from common.runner import Run
from papers.tensorized_emo import peers, pictures, search
from papers.tensorized_emo.checks import NAMES
from papers.tensorized_emo.config import Config, Framework
from papers.tensorized_emo.operators import reference_points
from papers.tensorized_emo.problems import dtlz
from papers.tensorized_emo.search import WAYS
from papers.tensorized_emo.settings import Setting

LIBRARIES = {"nsga3": ("pymoo", "EvoX"), "moead": ("pymoo", "EvoX"), "hype": ("EvoX",)}

Seconds = Mapping[str, float]
"""Of one generation, by who makes it."""


def measure(config: Config, run: Run) -> dict[str, Value]:
    """Every timing claim that is asked for."""
    values: dict[str, Value] = {}
    if run.wants("cpu_moead"):
        values["cpu_moead"] = cpu_moead(config, run)
    for name in ("nsga3", "hype"):
        if run.wants(f"cpu_{name}"):
            found = loops(config, run, name, config.loop_population)
            values[f"cpu_{name}"] = {"tensor": found["loop"] / found[tensor(config)], **over(found, "loop", frameworks(config))}
    if run.wants("vs_pymoo", "vs_evox", "growth", "fair_baseline"):
        values |= libraries(config, run)
    if run.wants("scale_time"):
        values["scale_time"] = scale_time(config, run)
    if run.wants("dim_scale"):
        values["dim_scale"] = dim_scale(config, run)
    return values


def tensor(config: Config) -> str:
    """The framework whose tensor form a bar is for."""
    return WAYS[config.framework.value]


def frameworks(config: Config) -> tuple[str, ...]:
    """Those that are timed: framework=torch leaves JAX out, which takes seconds to compile each program."""
    return ("JAX", "PyTorch") if config.framework is Framework.jax else ("PyTorch",)


def tensors(config: Config, setting: Setting) -> dict[str, Callable[[], None]]:
    """A generation of the tensor form by framework; under the control it is the loop."""
    ways = {shown: how for how, shown in WAYS.items()}
    return {
        shown: again(setting, ways[shown] if config.tensorised else "sequential", config.seed) for shown in frameworks(config)
    }


def warm(functions: Iterable[Callable[[], Any]]) -> None:
    """Call each once, two at a time: what has to be compiled is compiled side by side, before anything is timed."""
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda function: function(), functions))


def again(setting: Setting, how: str, seed: int) -> Callable[[], None]:
    """Each call makes the first generation anew, with other random numbers: what a generation takes depends on how far the
    population has come, and faster forms would be timed further on."""
    state, advance = search.begin(setting, seed, how)

    def one() -> None:
        advance(state)

    return one


def over(seconds: Seconds, baseline: str, names: tuple[str, ...]) -> dict[str, float]:
    """How many times as fast as the baseline."""
    return {name: seconds[baseline] / seconds[name] for name in names}


def cpu_moead(config: Config, run: Run) -> Value:
    found = [loops(config, run, "moead", size) for size in config.loop_sizes]
    small, large = (each["loop"] / each[tensor(config)] for each in (found[0], found[-1]))
    others = {
        f"{which}, {name}": ratio
        for which, each in (("smaller", found[0]), ("larger", found[-1]))
        for name, ratio in over(each, "loop", frameworks(config)).items()
    }
    return {"smaller": small, "larger": large, "growth": large / small, **others}


def loops(config: Config, run: Run, algorithm: str, size: int) -> Seconds:
    """A generation of DTLZ1 by the tensor forms and by the loop over individuals."""
    setting = Setting(algorithm, dtlz(1, config.loop_dimension), size, samples=config.loop_samples)
    quick, loop = tensors(config, setting), {"loop": again(setting, "sequential", config.seed)}
    with run.timing():
        first = {shown: _once(function) for shown, function in quick.items()}
        found = median_seconds(quick, config.repeats, least=0.1) | median_seconds(loop, max(1, config.repeats // 2))
    run.keep(f"seconds, {NAMES[algorithm]}, {setting.n}", {**found, "first call": first})
    return found


def _once(function: Callable[[], Any]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def libraries(config: Config, run: Run) -> dict[str, Value]:
    """Ratios of times at the population of the bars, and how they grow from the smallest population to the largest that both have."""
    names = ("vs_pymoo", "vs_evox", "growth", "fair_baseline")
    for package in ("pymoo", "evox"):
        if importlib.util.find_spec(package) is None:
            return dict.fromkeys(names, NotRun.without(package))
    sizes = [size for size in config.peer_sizes if config.tensorised or has_loop(config, size)]
    settings = {
        size: {each: Setting(each, dtlz(2, 12), size, samples=config.quality_samples) for each in LIBRARIES} for size in sizes
    }
    forms = {size: {each: tensors(config, setting) for each, setting in some.items()} for size, some in settings.items()}
    warm(function for some in forms.values() for functions in some.values() for function in functions.values())
    seconds = {size: by_library(config, run, settings[size], forms[size]) for size in run.track(sizes, "libraries")}

    def ratios(algorithm: str, library: str, how: str) -> dict[int, float]:
        name = NAMES[algorithm]
        return {
            size: each[f"{name}, {library}"] / each[f"{name}, {how}"]
            for size, each in seconds.items()
            if f"{name}, {library}" in each
        }

    def at_bar(library: str, how: str) -> dict[str, float]:
        return {
            NAMES[each]: ratios(each, library, how)[config.peer_population] for each in LIBRARIES if library in LIBRARIES[each]
        }

    def growth(algorithm: str, library: str, how: str) -> float:
        found = list(ratios(algorithm, library, how).values())
        return found[-1] / found[0]

    run.keep("libraries, seconds", seconds)
    run.keep(
        "libraries, ratios",
        {
            f"{NAMES[each]}, {how} over {library}": ratios(each, library, how)
            for each in LIBRARIES
            for library in LIBRARIES[each]
            for how in frameworks(config)
        },
    )
    run.figure("time", lambda: pictures.times(seconds))
    bar = seconds[config.peer_population]
    return {
        "vs_pymoo": {
            **at_bar("pymoo", tensor(config)),
            **{f"{name}, {how}": each for how in frameworks(config) for name, each in at_bar("pymoo", how).items()},
        },
        "vs_evox": {f"{name}, {how}": each for how in frameworks(config) for name, each in at_bar("EvoX", how).items()},
        "growth": {
            "NSGA-III over pymoo": growth("nsga3", "pymoo", tensor(config)),
            "MOEA/D over pymoo": growth("moead", "pymoo", tensor(config)),
            "NSGA-III over EvoX": growth("nsga3", "EvoX", "PyTorch"),
        },
        "fair_baseline": {
            "MOEA/D": min(bar["MOEA/D, pymoo"], bar["MOEA/D, EvoX"]) / bar["MOEA/D, loop"],
            "NSGA-III": bar["NSGA-III, pymoo"] / bar["NSGA-III, loop"],
        },
    }


def has_loop(config: Config, size: int) -> bool:
    """Loops over individuals end at the population of the bars: they take seconds there."""
    return size <= config.peer_population


def by_library(
    config: Config, run: Run, settings: Mapping[str, Setting], forms: Mapping[str, dict[str, Callable[[], None]]]
) -> Seconds:
    """A generation of DTLZ2 with 12 variables, by algorithm and who makes it."""
    found: dict[str, float] = {}
    for algorithm, setting in settings.items():
        slow = {}
        if has_loop(config, setting.size):
            slow["loop"] = again(setting, "sequential", config.seed)
        for library in LIBRARIES[algorithm]:
            # The libraries' MOEA/D is a loop over individuals, and EvoX compares all pairs anew for each front.
            if has_loop(config, setting.size) or (library, algorithm) == ("pymoo", "nsga3"):
                slow[library] = peers.begin(library, setting, 2, config.seed).advance
        # Beyond the population of the bars a generation takes seconds.
        often, seldom = (config.repeats, max(1, config.repeats // 2)) if has_loop(config, setting.size) else (1, 1)
        with run.timing():
            seconds = median_seconds(forms[algorithm], often, least=0.02) | median_seconds(slow, seldom)
        found |= {f"{NAMES[algorithm]}, {who}": each for who, each in seconds.items()}
    return found


def scale_time(config: Config, run: Run) -> Value:
    """The exponent of n in the time of NSGA-III's selection of n of 2n random points."""
    rng, seconds, functions = np.random.default_rng(config.seed), {}, {}
    for n in config.scale_sizes:
        f, references = rng.random((2 * n, 3)).astype(np.float32), reference_points(n, 3).astype(np.float32)
        functions[n] = {shown: _selection(shown, f, n, references) for shown in frameworks(config)}
    warm(function for each in functions.values() for function in each.values())
    for n in run.track(config.scale_sizes, "selection"):
        with run.timing():
            seconds[n] = median_seconds(functions[n], max(1, config.repeats // 2))
    run.keep("selection, seconds", seconds)
    run.figure("selection", lambda: pictures.scaling(seconds, "individuals", "Selection of n from 2n"))
    found = {
        who: float(np.polyfit(np.log(list(seconds)), [math.log(each[who]) for each in seconds.values()], 1)[0])
        for who in frameworks(config)
    }
    return {"exponent": found[tensor(config)], **found}


def _selection(framework: str, f: np.ndarray, n: int, references: np.ndarray) -> Callable[[], Any]:
    if framework == "PyTorch":
        import torch

        from papers.tensorized_emo import tensor_torch

        tensors = torch.from_numpy(f), n, torch.from_numpy(references)
        return lambda: tensor_torch.survivors(*tensors)
    import jax
    import jax.numpy as jnp

    from papers.tensorized_emo import tensor_jax

    arrays = jnp.asarray(f), jnp.asarray(references)
    select = jax.jit(lambda f, w: tensor_jax.survivors(f, n, w))
    return lambda: jax.block_until_ready(select(*arrays))


def dim_scale(config: Config, run: Run) -> Value:
    """R^2 of a line through the time of a generation over the number of variables."""
    seconds: dict[int, Seconds] = {}
    functions = {d: tensors(config, Setting("nsga3", dtlz(1, d), config.dimension_population)) for d in config.dimensions}
    warm(function for each in functions.values() for function in each.values())
    for d in run.track(config.dimensions, "variables"):
        with run.timing():
            seconds[d] = median_seconds(functions[d], config.repeats, least=0.05)
    run.keep("variables, seconds", seconds)
    run.figure("variables", lambda: pictures.scaling(seconds, "variables", "A generation of NSGA-III"))
    found = {
        who: float(np.corrcoef(list(seconds), [each[who] for each in seconds.values()])[0, 1] ** 2) for who in frameworks(config)
    }
    return {"tensor": found[tensor(config)], **found}
