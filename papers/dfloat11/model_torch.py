"""A PyTorch model whose matrices are held compressed and decoded just before use, unit after unit, into one buffer."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from common.models.weights import array_of
from papers.dfloat11.codec import THREADS, Unit
from papers.dfloat11.kernel import decode
from papers.dfloat11.store import PATTERNS, Compressed, bfloat16, compress, load


class Decoder:
    """The buffer that all units are decoded into, and who may use it: the unit that was decoded last.

    Attributes:
        decoded: how often each unit was decoded.
        seconds: spent in decoding.
    """

    def __init__(self, largest: int, device: torch.device) -> None:
        self.buffer = torch.empty(largest, dtype=torch.bfloat16, device=device)
        self.decoded: dict[str, int] = {}
        self.seconds = 0.0

    def __call__(self, name: str, arrays: Mapping[str, Tensor], threads: int) -> Tensor:
        start = time.perf_counter()
        bits = decode(**arrays, threads=threads)
        self.seconds += time.perf_counter() - start
        self.decoded[name] = self.decoded.get(name, 0) + 1
        weights = self.buffer[: bits.numel()]
        weights.copy_(bits.view(torch.bfloat16))
        return weights


def attach(module: nn.Module, compressed: Compressed, again: Mapping[str, Iterable[str]] | None = None) -> Decoder:
    """Take the units' parameters out of a bfloat16 module and decode each unit when the submodule of its name is entered.

    Args:
        again: for a unit the further submodules before which it is decoded once more; a head that is tied to the embedding
            comes after the blocks have used the buffer.

    Raises:
        ValueError: the module lacks a parameter or has it in another shape.
    """
    parameters = dict(module.named_parameters())
    with torch.no_grad():
        for name, array in compressed.raw.items():
            if name not in parameters or tuple(parameters[name].shape) != array.shape:
                raise ValueError(f"the model has no parameter {name!r} of shape {array.shape}")
            parameters[name].copy_(torch.from_numpy(array.astype(np.float32)))
    device = next(module.parameters()).device
    decoder = Decoder(max((unit.sign_mantissa.size for unit in compressed.units.values()), default=0), device)
    for name, unit in compressed.units.items():
        _attach_unit(module, name, unit, compressed.members[name], decoder, [name, *(again or {}).get(name, ())])
    return decoder


def compressed_lm(model: nn.Module, patterns: Iterable[str] = PATTERNS, threads: int = THREADS) -> tuple[Compressed, Decoder]:
    """Compress a bfloat16 :class:`common.models.transformer_torch.TransformerLM` in place."""
    weights = {name: array_of(parameter) for name, parameter in model.named_parameters()}
    for name, parameter in model.named_parameters():
        if parameter.dtype != torch.bfloat16:
            raise ValueError(f"{name!r} is {parameter.dtype}; build the model with dtype=torch.bfloat16")
    compressed = compress(bfloat16(weights), patterns, threads)
    return compressed, attach(model, compressed, tied(model))


def from_file(model: nn.Module, path: Path) -> Decoder:
    """Give a bfloat16 language model the weights of a file, which stay compressed."""
    return attach(model, load(path), tied(model))


def tied(model: Any) -> dict[str, list[str]]:
    """A tied head is computed behind the last norm, from the embedding."""
    return {"embedding": ["norm"]} if model.architecture.tied else {}


def resident_bytes(module: nn.Module, decoder: Decoder) -> int:
    """Bytes of everything that lives between two forward passes: parameters, compressed arrays, the buffer."""
    held = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in (*module.parameters(), *module.buffers())}
    return sum(held.values()) + decoder.buffer.untyped_storage().nbytes()


def _attach_unit(
    module: nn.Module, name: str, unit: Unit, members: Mapping[str, tuple[int, ...]], decoder: Decoder, before: list[str]
) -> None:
    owner = module.get_submodule(name)
    places = []
    for parameter, shape in members.items():
        path, _, leaf = parameter.rpartition(".")
        holder = module.get_submodule(path)
        found = holder._parameters.get(leaf)
        if found is None or tuple(found.shape) != shape:
            raise ValueError(f"the model has no parameter {parameter!r} of shape {shape}")
        del holder._parameters[leaf]
        places.append((holder, leaf, shape))
    arrays = {}
    for part, array in unit.arrays.items():
        tensor = torch.from_numpy(np.array(array)).to(decoder.buffer.device)
        owner.register_buffer(f"dfloat11_{part}", tensor, persistent=False)
        arrays[part] = tensor

    def place(*_: Any) -> None:
        weights, start = decoder(name, arrays, unit.threads), 0
        for holder, leaf, shape in places:
            size = int(np.prod(shape))
            # A plain attribute: the view is no parameter, and the next unit overwrites it.
            holder.__dict__[leaf] = weights[start : start + size].view(shape)
            start += size

    for path in before:
        module.get_submodule(path).register_forward_pre_hook(place)
