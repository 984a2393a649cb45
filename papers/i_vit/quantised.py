"""The zoo's model through training with simulated integers into the integer engine, and what is claimed of it."""

from __future__ import annotations

import dataclasses
import importlib
import tempfile
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from array_api_compat import array_namespace

from common import zoo
from common.data.digits import digits
from common.ledger import Value
from common.ops import framework
from common.runner import Run
from papers.i_vit import errors
from papers.i_vit.config import Config, Fault, Gelu


class Quantised:
    """The zoo's digits model, calibrated, trained with simulated integers and converted."""

    def __init__(self, config: Config, run: Run) -> None:
        self.config, self.run = config, run
        self.source, self.data = zoo.load(config.model), digits()
        self.fault = _through_float if config.fault is Fault.float_softmax else None
        run.used(config.model, self.source.source, self.source.sha256)
        run.used("digits", self.data.source, self.data.sha256)

    def values(self) -> dict[str, Value]:
        run, found = self.run, {}
        if run.wants("accuracy", "ablation"):
            self.run.keep("accuracy", {"float": self.float_accuracy, "integers": self.integer_accuracy})
            found["accuracy"] = 100 * (self.float_accuracy - self.integer_accuracy)
        if run.wants("ablation"):
            found["ablation"] = self.ablation()
        if run.wants("integers_only"):
            found["integers_only"] = self.floats()
        if run.wants("simulation"):
            found["simulation"] = self.mismatches()
        if run.wants("factors"):
            found["factors"] = self.factors()
        return found

    @cached_property
    def trained(self) -> Any:
        """The model after training with simulated integers."""
        import torch

        from common.models.vision_torch import classification_loss
        from common.training import warmup_cosine
        from common.training.torch_loop import adamw, train
        from papers.i_vit.model_torch import QuantisedViT
        from papers.i_vit.simulation import Options

        config, data = self.config, self.data
        rng = np.random.default_rng(config.seed)
        model = QuantisedViT(self.source.architecture, self.source.weights, Options(default=(16, False), steps=config.newton))
        model.train()
        order = rng.permutation(len(data.train))
        with torch.no_grad():
            for part in np.array_split(order, -(-len(order) // config.batch))[: config.calibration]:
                model(torch.from_numpy(data.train[part]))
        if config.gelu is Gelu.chosen:
            gelu, default = errors.choose_gelu(model.names, model.ranges.numpy()), (16, False)
        else:
            gelu, default = {}, (23, False)
        model.options = dataclasses.replace(model.options, gelu=gelu, default=default)
        steps = config.steps or config.epochs * (len(order) // config.batch)
        batches = [np.sort(rng.choice(len(data.train), config.batch, replace=False)) for _ in range(steps)]
        history = train(
            model, classification_loss, lambda step: (data.train[batches[step]], data.train_labels[batches[step]]),
            adamw(model, config.rate, config.weight_decay), steps, warmup_cosine(steps, 0, 1 / 15),
            self.run.checkpoint("qat"), 20, self.run.track, "training with simulated integers",
        )  # fmt: skip
        self.run.keep("training", {"steps": steps, "losses": history.losses, "gelu": {n: list(v) for n, v in gelu.items()}})
        if config.fault is Fault.wide_ranges:
            model.ranges *= 64
        return model.eval()

    @cached_property
    def exported(self) -> Any:
        return self.trained.convert()

    @cached_property
    def codes(self) -> Any:
        return self.exported.quantise(self.data.test)

    def engine(self, codes: np.ndarray) -> np.ndarray:
        """int32 logits by the integer engine in PyTorch."""
        import torch

        from papers.i_vit import engine

        return engine.run(self.exported.torch(), self.exported.notes, torch.from_numpy(codes), self.fault).numpy()

    @cached_property
    def float_accuracy(self) -> float:
        import torch

        with torch.no_grad():
            return self._accuracy(self.source.torch()(torch.from_numpy(self.data.test)).argmax(1).numpy())

    @cached_property
    def integer_accuracy(self) -> float:
        return self._accuracy(self.engine(self.codes).argmax(1))

    def _accuracy(self, found: np.ndarray) -> float:
        return float((found == self.data.test_labels).mean())

    def ablation(self) -> dict[str, Value]:
        """Percentage points of accuracy that each layer in floating point gains over integers."""
        import torch

        images, model = torch.from_numpy(self.data.test), self.trained
        kept, found = model.options, {}
        with torch.no_grad():
            for name in ("softmax", "gelu", "norm"):
                model.options = dataclasses.replace(kept, floats=frozenset({name}))
                logits = torch.cat([model(part) for part in images.split(self.config.batch)])
                found[name] = 100 * (self._accuracy(logits.argmax(1).numpy()) - self.integer_accuracy)
        model.options = kept
        return found

    def floats(self) -> dict[str, Value]:
        """Floating-point values in the graph from the input codes to the logits, in both frameworks."""
        import jax.numpy as jnp
        import torch

        from papers.i_vit import engine, guard

        notes, few = self.exported.notes, self.codes[:2]

        def function(arrays: Any, codes: Any) -> Any:
            return engine.run(arrays, notes, codes, self.fault)

        by_jax = guard.floats_jax(function, self.exported.jax(), jnp.asarray(few))
        by_torch = guard.floats_torch(function, self.exported.torch(), torch.from_numpy(few))
        operations = guard.operations(function, self.exported.jax(), jnp.asarray(few))
        self.run.keep("graph", {"operations": operations, "floats": [*by_torch, *by_jax][:10]})
        return {"torch": len(by_torch), "jax": len(by_jax)}

    def mismatches(self) -> dict[str, Value]:
        """Logits that differ from those of the simulation: engine in PyTorch, in JAX, in JAX from the file that was written."""
        import jax
        import jax.numpy as jnp
        import torch

        from papers.i_vit import engine, store

        few, model = slice(0, self.config.compared), self.trained
        with torch.no_grad():
            want = model.codes(torch.from_numpy(self.data.test[few]))[0].double().numpy()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "integers.safetensors"
            self.exported.save(path)
            loaded = store.load(path)
        run = jax.jit(lambda arrays, codes: engine.run(arrays, loaded.notes, codes, self.fault))
        theirs = np.asarray(run(loaded.jax(), jnp.asarray(loaded.quantise(self.data.test[few]))))
        return {"torch": int((self.engine(self.codes[few]) != want).sum()), "jax, from the file": int((theirs != want).sum())}

    def factors(self) -> float:
        """Largest relative error of a factor: m 2^-e against the ratio of the scales."""
        from papers.i_vit import network
        from papers.i_vit.convert import exact_weights
        from papers.i_vit.simulation import Simulation

        seen: dict[str, np.ndarray] = {}
        model, a = self.trained, self.source.architecture

        class Ratios(Simulation):
            def act(self, name: str, bits: int, *parts: Any) -> Any:
                for place, part in enumerate(parts):
                    key = f"{name}/{place}" if len(parts) > 1 else name
                    seen[key] = np.atleast_1d(part.scale / self._scale(name, None, bits))
                return super().act(name, bits, *parts)

        weights = exact_weights({n: p.detach().numpy() for n, p in model.vit.named_parameters()})
        network.vit(
            Ratios(weights, model.names, model.ranges.numpy(), model.options), a, np.zeros((1, a.image, a.image, a.channels))
        )
        arrays = self.exported.arrays
        return max(
            float(np.abs(np.ldexp(arrays[f"{name}.m"].astype(np.float64), -arrays[f"{name}.e"]) / ratio - 1).max())
            for name, ratio in seen.items()
        )


def _through_float(codes: Any) -> Any:
    """By way of a float of 11 bits."""
    kind = framework(codes)
    half = importlib.import_module("torch" if kind == "torch" else "jax.numpy").float16
    xp = array_namespace(codes)
    return xp.astype(xp.astype(codes, half), codes.dtype)
