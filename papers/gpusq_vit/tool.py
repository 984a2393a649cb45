"""The stages one by one, with files between them: ``python -m papers.gpusq_vit.tool prune FOLDER``, then quantize, evaluate.

prune writes the pruned weights and the feature losses; quantize reads both and writes the packed model; evaluate runs it.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from common import UserError
from common.checkpoint import write_whole
from common.runner import Run, prepare, presets
from papers.gpusq_vit import store
from papers.gpusq_vit.stages import Pipeline, Variant, load_feature_losses, save_feature_losses
from papers.gpusq_vit.tasks import task

WEIGHTS, MODEL = "pruned.safetensors", "model.safetensors"


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m papers.gpusq_vit.tool", description=__doc__.partition("\n\n")[2])
    parser.add_argument("step", choices=("prune", "quantize", "evaluate"))
    parser.add_argument("folder", type=Path, help="where the files between the steps lie")
    parser.add_argument("--bits", type=int, choices=(8, 4), default=8, help="of weights and activations (default: 8)")
    parser.add_argument("--unlabelled", action="store_true", help="train on the teacher's predictions instead of labels")
    parser.add_argument(
        "--preset", choices=("smoke", "laptop"), default="laptop", help="options of the training (default: laptop)"
    )
    chosen = parser.parse_args(words)
    try:
        print(_step(chosen, prepare("gpusq_vit", presets("gpusq_vit")[chosen.preset], chosen.folder, quiet=True)))
    except UserError as error:
        print(f"gpusq_vit: {error}", file=sys.stderr)
        return 2
    return 0


def _step(chosen: argparse.Namespace, run: Run) -> str:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file, save

    config = presets("gpusq_vit")[chosen.preset]
    variant, folder = Variant(chosen.bits, labelled=not chosen.unlabelled), chosen.folder
    pipeline = Pipeline(config, task(config, run))
    if chosen.step == "prune":
        pruned = pipeline.prune(variant, 0)
        save_feature_losses(folder, pipeline.feature_losses(pruned))
        write_whole(folder / WEIGHTS, save(pipeline.method.weights_of(pruned)))
        return f"pruned: {pipeline.accuracy(pruned):.2f} % right (dense: {pipeline.accuracy(pipeline.dense):.2f} %)"
    if chosen.step == "quantize":
        losses = load_feature_losses(folder, pipeline.critical)
        try:
            weights = load_file(folder / WEIGHTS)
        except (OSError, SafetensorError) as error:
            raise UserError(f"{folder / WEIGHTS} cannot be read ({error}); run the step prune again") from error
        pruned = pipeline.method.build(pipeline.task.architecture, weights)
        # Masks are fixed from the dense weights, so they are found again there.
        masked = pipeline.method.copied(pipeline.dense)
        pipeline.method.prune(masked, variant.bits, config.classifier, config.ragged.value)
        pipeline.method.take_masks(pruned, masked)
        model = pipeline.quantize(pruned, losses, variant, 0)
        size = pipeline.method.export(model, variant.bits).save(folder / MODEL)
        return f"quantised: {pipeline.accuracy(model):.2f} % right, {size} bytes in {folder / MODEL}"
    return f"packed file: {pipeline.packed_accuracy(store.load(folder / MODEL)):.2f} % right"


if __name__ == "__main__":
    sys.exit(main())
