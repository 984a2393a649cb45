"""What follows from an operation's declaration alone: agreement, compilation, export. No room writes these itself."""

import ast
import importlib
import re
import subprocess
import sys

import pytest

from common import ROOT, ahead_of_time
from common.agreement import check
from common.ops import FRAMEWORK, discover

OPERATIONS = list(discover())
ROOMS = {operation.room: operation for operation in OPERATIONS}


def _agreements():
    for operation in OPERATIONS:
        for case in [each for each in operation.cases() if not each.large]:
            for backend in case.backends or operation.backends:
                for dtype in case.tolerance:
                    if dtype == "float64" and backend not in operation.double:
                        continue
                    if dtype == "bfloat16" and backend == "triton":
                        continue  # the interpreter computes bfloat16 silently wrong; compilation covers it
                    yield pytest.param(operation, case, backend, dtype, id=f"{operation.id}-{case.id}-{backend}-{dtype}")


@pytest.mark.parametrize(("operation", "case", "backend", "dtype"), _agreements())
def test_backend_agrees_with_the_definition(operation, case, backend, dtype, record_property):
    errors = check(operation, case, backend, dtype)
    record_property("agreement", [operation.id, backend, dtype, max(errors.values(), default=0.0)])
    allowed = 0.0 if operation.exact else case.tolerance[dtype]
    wrong = {name: error for name, error in errors.items() if not error <= allowed}
    assert not wrong, f"allowed {allowed:g}"


def _compilations():
    for operation in {o.room: o for o in OPERATIONS if "triton" in o.backends}.values():
        for number, config in enumerate(ahead_of_time.shipped(operation)):
            for target in config.targets:
                quick = number == 0 and target in ("sm_90", "gfx942")
                marks = [] if quick else [pytest.mark.slow]
                yield pytest.param(operation, config.id, target, id=f"{operation.room}-{config.id}-{target}", marks=marks)


@pytest.mark.parametrize(("operation", "config", "target"), _compilations())
def test_shipped_kernel_compiles_without_spilling(operation, config, target, compiler, record_property):
    usage = compiler(operation.room, config, target)
    record_property("compiled", {"kernel": f"{operation.id.partition('.')[0]} {config}", "target": target, **usage})
    why = next(each for each in ahead_of_time.shipped(operation) if each.id == config).spills
    assert usage["spills"] == 0 or why, usage
    assert usage["shared"] <= ahead_of_time.SHARED_MEMORY[target], usage


def _exports():
    for operation in {o.room: o for o in OPERATIONS if "pallas" in o.backends}.values():
        for exported in ahead_of_time.exports(operation):
            for platform in exported.platforms:
                yield pytest.param(operation, exported, platform, id=f"{operation.room}-{exported.id}-{platform}")


@pytest.mark.parametrize(("operation", "exported", "platform"), _exports())
def test_pallas_kernel_lowers(operation, exported, platform):
    assert "custom_call" in ahead_of_time.lower(exported, platform)


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda o: o.id)
def test_operation_is_whole(operation):
    public = getattr(importlib.import_module(operation.room), operation.name)
    assert public.__doc__, "a public operation has a docstring: equation, shapes, dtypes, errors, source"
    assert any(case.large for case in operation.cases()), "no large case for the benchmark"
    assert len({case.id for case in operation.cases()}) == len(operation.cases())
    assert all(case.why for case in operation.cases() if case.tolerance.get("float32", 0) > 1e-5), "a wider tolerance says why"
    reference = operation.implementation("reference")
    taken = set(importlib.import_module("inspect").signature(reference).parameters)
    assert taken.isdisjoint(operation.tuning), "the reference does not take tuning arguments"


def _fast_files():
    files = [path for room in sorted(ROOMS) for path in sorted((ROOT / room.replace(".", "/")).glob("*.py"))]
    return [path for path in files if path.stem not in ("__init__", "reference", "cases")]


@pytest.mark.parametrize("path", _fast_files(), ids=lambda p: str(p.relative_to(ROOT)))
def test_fast_file_keeps_to_its_own(path):
    text = path.read_text()
    imported = {name.name for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Import) for name in node.names}
    imported |= {node.module or "" for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ImportFrom)}
    assert not any(name.endswith(("reference", "cases")) for name in imported), "a fast file never leans on the definition"
    # The type-checking import hook breaks a jitted function unless @no_type_check stands directly below.
    assert not re.search(r"@triton\.jit\n(?!@no_type_check)", text)
    assert not re.search(r"@(numba\.)?njit.*\n(?!@no_type_check)", text)


def test_no_framework_is_imported_before_it_is_used():
    code = "import sys; from common.ops import discover; list(discover()); print(sorted({'torch', 'jax', 'triton'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"


def test_every_backend_has_a_file():
    for operation in OPERATIONS:
        assert set(operation.backends) <= set(FRAMEWORK)
        for backend in operation.backends:
            assert callable(operation.implementation(backend))
