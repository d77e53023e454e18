"""Strength of post-hoc adjustment that held-out images choose, beside none and full adjustment.

    uv run python scripts/benchmarks/prior_strength.py photos/ --weights resnet18.pth
    uv run python scripts/benchmarks/prior_strength.py photos/ --weights resnet18.pth --exposures 6

The photos are a folder of class folders, subsampled as by `imbalance.py`; a fifth of the remaining
photos of each class is the validation set. Heads are those of the linear probe, on features of the
frozen backbone. With `--exposures`, each training and validation photo becomes that many images of
different brightness, which the folds of the probe keep together (`grouped`) or do not (`divided`),
as if an audit had not found them.

Accuracy and macro-F1 weight the test images such that the classes are as frequent as in training.
"""

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from finetune.commands.measurement.prior_adjustment import HeldOutLogits, choose_on_held_out
from finetune.data.dataset import ImageDataset, create_loader
from finetune.data.images.source import FileSource
from finetune.data.scan import scan
from finetune.data.transforms.eval_transform import EvalTransform
from finetune.evaluation.priors import build_uniform_prior, compute_logit_shift, normalize_prior
from finetune.models.backbone import create_network
from finetune.models.classifier import normalise
from finetune.models.head import capture_head_inputs, find_linear_head
from finetune.probe.cross_validation import fit_head
from finetune.types import Sample
from scripts.benchmarks.imbalance import compute_scores, subsample

BRIGHTNESS = (1.0, 0.6, 0.75, 0.88, 1.15, 1.35)
"""Factors of the pixel values of the exposures."""


def main() -> None:
    """Print the scores of each ratio and seed, and their means."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--weights", default="hub")
    parser.add_argument("--ratio", type=float, nargs="+", default=[10, 30, 50, 100])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--largest", type=int, default=350)
    parser.add_argument("--held-out", type=int, default=44)
    parser.add_argument("--image-size", type=int, default=128)
    parser.add_argument("--exposures", type=int, choices=range(1, len(BRIGHTNESS) + 1), default=1)
    options = parser.parse_args()
    samples = scan(options.photos).samples
    features = _compute_features(options, samples)
    for ratio in options.ratio:
        rows: dict[str, list[tuple[float, ...]]] = {}
        for seed in range(options.seeds):
            train, test = subsample(
                samples,
                ratio=ratio,
                largest=options.largest,
                held_out=options.held_out,
                seed=seed,
            )
            for name, scores in _evaluate(features, train, test, seed).items():
                rows.setdefault(name, []).append(scores)
            print(f"ratio {ratio:g}, seed {seed} done", file=sys.stderr, flush=True)
        print(f"ratio {ratio:g}: strength, balanced accuracy, accuracy, macro-F1")
        for name, table in rows.items():
            print(f"{name:<28}", *(f"{value:.3f}" for value in np.mean(table, axis=0)))


def _compute_features(
    options: Namespace, samples: Sequence[Sample]
) -> dict[str, NDArray[np.float32]]:
    """Return the features of the exposures of each photo, (exposures, D), by its path."""
    network = create_network(
        options.backbone, num_classes=2, weights=options.weights, image_size=options.image_size
    )
    spec = network.spec
    paths = [options.photos.resolve() / sample.path for sample in samples]
    dataset = ImageDataset(FileSource(paths), [0] * len(paths), EvalTransform(spec))
    head = find_linear_head(network.module)
    assert head is not None
    network.module.eval()
    batches = []
    with torch.inference_mode(), capture_head_inputs(head) as inputs:
        for batch in create_loader(dataset, batch_size=32, num_workers=0):
            views = []
            for factor in BRIGHTNESS[: options.exposures]:
                pixels = (batch["image"] * factor).clamp(0, 255).to(torch.uint8)
                network.module(normalise(pixels, mean=spec.mean, std=spec.std))
                views.append(inputs.pop().clone())
            batches.append(torch.stack(views, dim=1))
    table = torch.cat(batches).numpy()
    return {sample.path: row for sample, row in zip(samples, table, strict=True)}


def _evaluate(
    features: dict[str, NDArray[np.float32]],
    train: Sequence[Sample],
    test: Sequence[Sample],
    seed: int,
) -> dict[str, tuple[float, float, float, float]]:
    """Return strength, balanced accuracy, accuracy and macro-F1 by name of the head."""
    classes = sorted({sample.label for sample in train})
    labels = np.array([classes.index(sample.label) for sample in train])
    is_val = _draw_validation_rows(labels, seed)
    table = np.stack([features[sample.path] for sample in train])
    num_exposures = table.shape[1]
    unseen = torch.from_numpy(np.stack([features[sample.path][0] for sample in test]))
    test_labels = np.array([classes.index(sample.label) for sample in test])

    def flatten(rows: NDArray[np.bool_]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        return np.concatenate(list(table[rows])), np.repeat(labels[rows], num_exposures)

    (inputs, target), (val_inputs, val_target) = flatten(~is_val), flatten(is_val)
    counts = np.bincount(target, minlength=len(classes)).tolist()
    train_prior = normalize_prior(counts)
    shift = torch.tensor(compute_logit_shift(build_uniform_prior(len(classes)), train_prior))
    results = {}
    for kind in ("grouped", "divided")[: 1 if num_exposures == 1 else 2]:
        groups, val_groups = (
            np.repeat(np.arange(0, len(rows), num_exposures), num_exposures)
            if kind == "grouped"
            else np.arange(len(rows))
            for rows in (target, val_target)
        )
        fitted = fit_head(
            [inputs], target, np.ones(len(target)), num_classes=len(classes), groups=groups
        )
        head = fitted.head
        logits = unseen @ head.weight.T + head.bias
        val = HeldOutLogits(
            head.compute_logits(val_inputs), torch.from_numpy(val_target), val_groups
        )
        rows = fitted.held_out_rows
        out_of_fold = HeldOutLogits(
            fitted.held_out_probabilities.clamp_min(1e-30).log(),
            torch.from_numpy(target[rows]),
            groups[rows],
        )
        choice, temperature, _ = choose_on_held_out(
            val, out_of_fold, shift, train_prior=train_prior, metric="macro_f1"
        )
        for name, strength, scale in (
            ("none", 0.0, 1.0),
            ("chosen", choice.strength, temperature),
            ("full", 1.0, 1.0),
        ):
            scores = _compute_scores(logits / scale + strength * shift, test_labels, counts)
            key = name if num_exposures == 1 else f"{name}, {kind} folds"
            results[key] = (strength, *scores)
    return results


def _draw_validation_rows(labels: NDArray[np.int64], seed: int) -> NDArray[np.bool_]:
    """Return a fifth of the photos of each class, at least one if there are two or more."""
    generator = np.random.default_rng(seed)
    is_val = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        rows = generator.permutation(np.flatnonzero(labels == label))
        is_val[rows[: max(round(0.2 * len(rows)), min(1, len(rows) - 1))]] = True
    return is_val


def _compute_scores(
    logits: Tensor, labels: NDArray[np.int64], counts: Sequence[int]
) -> tuple[float, float, float]:
    confusion = np.zeros((len(counts), len(counts)))
    np.add.at(confusion, (labels, logits.argmax(dim=1).numpy()), 1)
    scores: tuple[float, float, float] = compute_scores(confusion, counts)
    return scores


if __name__ == "__main__":
    main()
