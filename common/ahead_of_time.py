"""Compile Triton kernels for GPUs that are not here, and lower Pallas kernels for platforms that are not here.

Triton cannot compile in a process that interprets (TRITON_INTERPRET=1), so a child process without that variable reads
one JSON request a line and answers in kind; :class:`Compiler` owns it.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import selectors
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common.ops import Exported, Operation, Shipped

SHARED_MEMORY = {"sm_80": 166_912, "sm_90": 232_448, "sm_100": 232_448, "gfx942": 65_536}
"""Bytes of shared memory that one block may use (NVIDIA: CUDA programming guide, compute capabilities; AMD: CDNA3 LDS).
Triton itself accepts more without a word."""


class Compiler:
    """A child process that compiles: ``with Compiler() as compiler: compiler(room, id, target)``."""

    def __enter__(self) -> Compiler:
        environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
        # Its default changes between Triton versions; stated, the numbers stay comparable.
        environment.setdefault("TRITON_DEFAULT_FP_FUSION", "1")
        self.child = subprocess.Popen(
            [sys.executable, "-m", "common.ahead_of_time"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        return self

    def __exit__(self, *_: object) -> None:
        self.child.kill()
        self.child.wait()

    def __call__(self, room: str, shipped: str, target: str, timeout: float = 120) -> dict[str, Any]:
        """Registers, stack, spills and shared memory of one shipped configuration on one target."""
        assert self.child.stdin and self.child.stdout
        self.child.stdin.write(json.dumps({"room": room, "id": shipped, "target": target}) + "\n")
        self.child.stdin.flush()
        with selectors.DefaultSelector() as ready:
            ready.register(self.child.stdout, selectors.EVENT_READ)
            if not ready.select(timeout):
                self.child.kill()
                raise TimeoutError(
                    f"{room} {shipped} did not compile for {target} in {timeout:.0f} s; does it spill without measure?"
                )
        answer = json.loads(self.child.stdout.readline() or '{"error": "the compiling process died"}')
        if "error" in answer:
            raise RuntimeError(f"{room} {shipped} does not compile for {target}: {answer['error']}")
        return answer


def shipped(operation: Operation) -> list[Shipped]:
    """The Triton configurations of the operation's room."""
    return list(importlib.import_module(f"{operation.room}.triton_impl").shipped())


def exports(operation: Operation) -> list[Exported]:
    """The Pallas kernels of the operation's room."""
    return list(importlib.import_module(f"{operation.room}.pallas_impl").exports())


def lower(exported: Exported, platform: str) -> str:
    """The MLIR of a Pallas kernel for a platform; raises what the lowering raises."""
    import jax
    from jax import export

    shapes = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in exported.shapes]
    calls = ("__gpu$xla.gpu.triton", "tpu_custom_call", "mosaic_gpu")
    checks = [export.DisabledSafetyCheck.custom_call(call) for call in calls]
    with jax.enable_x64(any(dtype in ("float64", "int64") for _, dtype in exported.shapes)):
        return export.export(jax.jit(exported.function), platforms=[platform], disabled_checks=checks)(*shapes).mlir_module()


def compile_shipped(config: Shipped, target: str) -> dict[str, Any]:
    """Compile one configuration in this process (which must not interpret)."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    nvidia = target.startswith("sm_")
    device = GPUTarget("cuda", int(target[3:]), 32) if nvidia else GPUTarget("hip", target, 64)
    # Pointers come 16-byte aligned from both frameworks; without saying so one tests a kernel that nobody launches.
    aligned = {(i,): [["tt.divisibility", 16]] for i, kind in enumerate(config.signature.values()) if kind.startswith("*")}
    source = ASTSource(fn=_jit(config.kernel), signature=config.signature, constexprs=config.constexprs, attrs=aligned)
    start = time.perf_counter()
    compiled = triton.compile(source, target=device, options=config.options)
    usage = _nvidia_usage(compiled.asm["cubin"]) if nvidia else _amd_usage(compiled.asm["amdgcn"])
    dots = r"mma\.sync|wgmma\.mma_async|tcgen05\.mma" if nvidia else r"\bv_mfma"
    usage["tensor_core"] = len(re.findall(dots, compiled.asm["ptx" if nvidia else "amdgcn"]))
    return {**usage, "shared": compiled.metadata.shared, "seconds": round(time.perf_counter() - start, 2)}


def _jit(kernel: Any) -> Any:
    """The JIT function below an autotuner or heuristics."""
    from triton import JITFunction

    while not isinstance(kernel, JITFunction):
        kernel = kernel.fn
    return kernel


def _nvidia_usage(cubin: bytes) -> dict[str, int]:
    import triton

    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = subprocess.run([tools / "cuobjdump", "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
        code = subprocess.run([tools / "nvdisasm", "-c", file.name], capture_output=True, text=True, check=True).stdout
    return {
        "registers": max(map(int, re.findall(r"REG:(\d+)", usage))),
        "stack": max(map(int, re.findall(r"STACK:(\d+)", usage))),
        "spills": len(re.findall(r"\bSTL\b", code)),
    }


def _amd_usage(assembly: str) -> dict[str, int]:
    def field(name: str) -> int:
        return max(map(int, re.findall(rf"\.{name}:\s*(\d+)", assembly)))

    spills = field("vgpr_spill_count") + field("sgpr_spill_count")
    return {"registers": field("vgpr_count"), "stack": field("private_segment_fixed_size"), "spills": spills}


def _serve() -> None:
    for line in sys.stdin:
        request = json.loads(line)
        try:
            module = importlib.import_module(f"{request['room']}.triton_impl")
            config = next(each for each in module.shipped() if each.id == request["id"])
            answer = compile_shipped(config, request["target"])
        except Exception as error:  # the parent raises it again, with the kernel's name
            answer = {"error": f"{type(error).__name__}: {str(error)[-1500:]}"}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    _serve()
