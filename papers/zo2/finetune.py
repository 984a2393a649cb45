"""Fine-tuning with ZO2: a model trained on the King James text, on Python source."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import torch

from common import zoo
from common.data.text import batches, python_source, windows
from common.ledger import Value
from common.runner import Run
from papers.zo2.config import Config, Framework
from papers.zo2.exact import streamed
from papers.zo2.rule import Rule


def learn(config: Config, run: Run) -> dict[str, Value]:
    """Fall of the loss on held-out Python source; Adam on the same batches is kept beside it."""
    trained, text = zoo.load(config.model), python_source()
    run.used("Python source", text.source, text.sha256)
    run.used(config.model, trained.source, trained.sha256)
    batch_at = batches(text.train, config.batch, config.seq_len, config.seed)
    rows = list(itertools.islice(windows(text.held_out, 8, config.seq_len), max(1, config.held_out_windows // 8)))
    engine = _engine(config, trained)
    before = _held_out(config, engine, rows)
    curve = _train(config, run, engine, batch_at)
    after = _held_out(config, engine, rows)
    if config.framework is Framework.torch:
        engine.close()
    adam = _adam(config, run, trained, batch_at, rows) if run.only is None else None
    run.keep("loss_curve", curve)
    run.keep("held_out", {"before": before, "ZO2": after, "Adam, same batches": adam})
    run.figure("loss", lambda: _draw(curve))
    return {"learns": before - after}


def _engine(config: Config, trained: Any) -> Any:
    rule = Rule(config.rate, config.epsilon, config.decay)
    if config.framework is Framework.jax:
        from papers.zo2.zo2_jax import ZO2

        return ZO2(trained.architecture, trained.weights, rule, wire=config.wire.value, overlap=config.overlap)
    options = {"overlap": config.overlap, "bucket": config.bucket, "schedule": config.schedule}
    engine = streamed(trained.architecture, rule, wire=getattr(torch, config.wire.value), **options)
    engine.load_model(trained.torch())
    return engine


def _train(config: Config, run: Run, engine: Any, batch_at: Any) -> list[float]:
    """The losses of all steps; a run that was killed goes on from its last checkpoint, and ends as if it had not been."""
    checkpoint, curve = run.checkpoint("zo2"), list[float]()
    saved = checkpoint.load()
    if saved is not None:
        arrays, meta = saved
        curve = meta["losses"]
        engine.load(lambda unit: {each.name: arrays[each.name] for each in unit.parameters})
    for step in run.track(range(len(curve), config.steps), "fine-tuning without gradients"):
        batch = batch_at(step)
        curve.append(engine.step(torch.from_numpy(batch) if config.framework is Framework.torch else batch, config.seed + step))
        if (step + 1) % 50 == 0:
            # Flushed: what is kept is then the weights alone.
            checkpoint.save({name: np.asarray(each) for name, each in engine.weights().items()}, {"losses": curve})
    return curve


def _held_out(config: Config, engine: Any, rows: list[np.ndarray]) -> float:
    values = [engine.evaluate(torch.from_numpy(each) if config.framework is Framework.torch else each) for each in rows]
    return float(np.average(values, weights=[len(each) for each in rows]))


def _adam(config: Config, run: Run, trained: Any, batch_at: Any, rows: list[np.ndarray]) -> float:
    from common.training import torch_loop

    model = trained.torch()
    optimizer = torch_loop.adamw(model, 1e-4, weight_decay=0.0)
    torch_loop.train(
        model, torch_loop.next_token_loss, batch_at, optimizer, config.steps, track=run.track, label="fine-tuning with Adam"
    )
    return torch_loop.evaluate(model, rows)


def _draw(curve: list[float]) -> Any:
    from common.figures import lines

    mean = np.convolve(curve, np.ones(min(20, len(curve))) / min(20, len(curve)), "valid")
    steps = np.arange(len(curve) - len(mean) + 1, len(curve) + 1)
    labels = {"x": "step", "y": "loss [nats per byte]", "title": "Fine-tuning on Python source with two forward passes a step"}
    return lines({"mean of 20 steps": (steps, mean)}, **labels)
