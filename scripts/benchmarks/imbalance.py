"""Accuracy and macro-F1 of each strategy against class imbalance, on photos of your own.

    uv run python scripts/benchmarks/imbalance.py heads photos/ --weights resnet18.pth
    uv run python scripts/benchmarks/imbalance.py fits photos/ --weights resnet18.pth --ratio 50

The photos are a folder of class folders. For each seed, equally many images of each class are held
out as a balanced test set; the others are subsampled to an exponential profile with the given ratio
of the largest to the smallest class, with the classes in random order. `heads` trains linear heads
on features of the frozen backbone with every strategy: with AdamW and the strategy's sampler and
loss, and as the logistic regression of the linear probe. `fits` runs `finetune fit` with its
defaults on the subsampled folder, and `finetune evaluate` on the test set.

Balanced accuracy is that of the test set; accuracy and macro-F1 weight its images such that the
classes are as frequent as in training.
"""

import json
import os
import random
import statistics
import subprocess
import sys
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from finetune.builders.criterion import build_class_weights, build_criterion_schedule
from finetune.builders.sampling import build_sampling_schedule
from finetune.config.imbalance import IMBALANCE_STRATEGIES, apply_imbalance_strategy
from finetune.config.load import replace_values
from finetune.config.resolved import ResolvedImbalanceConfig, ResolvedLossConfig
from finetune.config.schema import Config
from finetune.data.dataset import ImageDataset, create_loader
from finetune.data.images.source import FileSource
from finetune.data.manifest import Manifest
from finetune.data.samplers.epoch_sampler import EpochSampler
from finetune.data.scan import scan
from finetune.data.training_data import TrainingData
from finetune.data.transforms.eval_transform import EvalTransform
from finetune.evaluation.calibration import fit_temperature
from finetune.evaluation.prior_strength import choose_strength
from finetune.evaluation.priors import (
    build_uniform_prior,
    compute_logit_shift,
    normalize_prior,
)
from finetune.models.backbone import create_network
from finetune.models.classifier import normalise
from finetune.models.head import capture_head_inputs, find_linear_head
from finetune.probe.cross_validation import CrossValidatedHead, fit_head
from finetune.probe.head_rebalancing import TAU_GRID, apply_tau_normalisation
from finetune.types import Sample, Split

_EPOCHS, _BATCH, _LR = 40, 32, 1e-3


def subsample(
    samples: Sequence[Sample], *, ratio: float, largest: int, held_out: int, seed: int
) -> tuple[list[Sample], list[Sample]]:
    """Return training samples with an exponential profile, and a balanced test set.

    Args:
        samples: Samples of all classes.
        ratio: Size of the largest class divided by that of the smallest.
        largest: Training images of the largest class; fewer if the classes are too small.
        held_out: Test images per class.
        seed: Seed of the selection and of the order of the classes.
    """
    rng = random.Random(f"{seed} {ratio}")
    by_class: dict[str, list[Sample]] = {}
    for sample in samples:
        by_class.setdefault(sample.label, []).append(sample)
    names = sorted(by_class)
    test = []
    for name in names:
        random.Random(f"{seed} {name}").shuffle(by_class[name])
        test += by_class[name][:held_out]
        by_class[name] = by_class[name][held_out:]
    factors = [ratio ** (-rank / (len(names) - 1)) for rank in range(len(names))]
    available = sorted(map(len, by_class.values()), reverse=True)
    largest = min(largest, *(int(n / factor) for n, factor in zip(available, factors, strict=True)))
    sizes = [max(1, round(largest * factor)) for factor in factors]
    while True:  # until each class has enough images for its size
        rng.shuffle(names)
        if all(len(by_class[name]) >= size for name, size in zip(names, sizes, strict=True)):
            break
    train = [s for name, size in zip(names, sizes, strict=True) for s in by_class[name][:size]]
    return train, test


def main() -> None:
    """Evaluate heads on features, or whole fits."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("mode", choices=("heads", "fits"))
    parser.add_argument("photos", type=Path)
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--weights", default="hub")
    parser.add_argument("--ratio", type=float, nargs="+", default=[1, 10, 50, 100])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--largest", type=int, default=360)
    parser.add_argument("--held-out", type=int, default=40)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument(
        "--strategies", nargs="+", default=["none", "auto", "post_hoc"], help="strategies of fits"
    )
    parser.add_argument("--folder", type=Path, default=Path("runs/imbalance"))
    options = parser.parse_args()
    if options.mode == "heads":
        _evaluate_heads(options)
    else:
        _evaluate_fits(options)


def _draw_samples(options: Namespace, ratio: float, seed: int) -> tuple[list[Sample], list[Sample]]:
    samples = scan(options.photos).samples
    return subsample(
        samples, ratio=ratio, largest=options.largest, held_out=options.held_out, seed=seed
    )


def _evaluate_heads(options: Namespace) -> None:
    torch.manual_seed(0)
    features = _compute_features(options)
    rows: dict[tuple[str, float], list[tuple[float, float, float]]] = {}
    for ratio in options.ratio:
        for seed in range(options.seeds):
            train, test = _draw_samples(options, ratio, seed)
            for name, logits, counts, labels in _fit_heads(options, features, train, test, seed):
                confusion = np.zeros((len(counts), len(counts)))
                np.add.at(confusion, (labels, logits.argmax(dim=1).numpy()), 1)
                scores = compute_scores(confusion, counts)
                rows.setdefault((name, ratio), []).append(scores)
            print(f"ratio {ratio:g}, seed {seed} done", file=sys.stderr, flush=True)
    _print_table(rows, options.ratio)


def _compute_features(options: Namespace) -> dict[str, NDArray[np.float32]]:
    """Return the features of the frozen backbone for each photo, by its path."""
    network = create_network(
        options.backbone,
        num_classes=2,
        weights=options.weights,
        image_size=options.image_size,
    )
    spec = network.spec
    samples = scan(options.photos).samples
    paths = [options.photos.resolve() / sample.path for sample in samples]
    dataset = ImageDataset(FileSource(paths), [0] * len(paths), EvalTransform(spec))
    head = find_linear_head(network.module)
    assert head is not None
    network.module.eval()
    features = []
    with torch.inference_mode(), capture_head_inputs(head) as inputs:
        for batch in create_loader(dataset, batch_size=32, num_workers=0):
            network.module(normalise(batch["image"], mean=spec.mean, std=spec.std))
            features.append(inputs.pop().clone())
    table = torch.cat(features).numpy()
    return {sample.path: row for sample, row in zip(samples, table, strict=True)}


def _fit_heads(
    options: Namespace,
    features: Mapping[str, NDArray[np.float32]],
    train: Sequence[Sample],
    test: Sequence[Sample],
    seed: int,
) -> "list[tuple[str, Tensor, list[int], NDArray[np.int64]]]":
    """Return the test logits of each strategy, with the training counts and the test labels."""
    classes = tuple(sorted({sample.label for sample in train}))
    samples = tuple(Sample(s.path, s.label, Split.TRAIN) for s in train)
    manifest = Manifest(options.photos, classes, samples)
    data = TrainingData.from_manifest(manifest)
    counts, labels = list(data.class_counts), data.train.labels
    test_labels = np.asarray(manifest.encode_labels(test), np.int64)
    table, unseen = (np.stack([features[sample.path] for sample in part]) for part in (train, test))
    uniform = build_uniform_prior(len(classes))
    shift = torch.tensor(compute_logit_shift(uniform, normalize_prior(counts)))
    heads = []
    for name, strategy in IMBALANCE_STRATEGIES.items():
        if strategy.head_rebalancing != "none" or name == "post_hoc":
            continue
        weight, bias = _train_head(name, data, table, seed)
        logits = torch.from_numpy(unseen) @ weight.T + bias
        heads.append((name, logits, counts, test_labels))
        if name == "none":
            heads.append(("none, post_hoc", logits + shift, counts, test_labels))
            heads += [
                (
                    f"none, tau {tau:g}",
                    _apply_head(apply_tau_normalisation(weight, bias, tau), unseen),
                    counts,
                    test_labels,
                )
                for tau in TAU_GRID[1:]
            ]
    balanced = 1 / np.asarray(counts, float)[labels]
    fitted = fit_head([table], labels, np.ones(len(labels)), num_classes=len(classes))
    plain = fitted.head
    scale, strength = _choose_strength(fitted, labels, shift)
    crt = fit_head([table], labels, balanced, num_classes=len(classes)).head
    heads += [
        ("probe", plain.compute_logits(unseen), counts, test_labels),
        ("probe, post_hoc", plain.compute_logits(unseen) + shift, counts, test_labels),
        (
            "probe, post_hoc with a chosen strength (auto)",
            plain.compute_logits(unseen) / scale + strength * shift,
            counts,
            test_labels,
        ),
        ("probe, class_weights (crt)", crt.compute_logits(unseen), counts, test_labels),
    ]
    heads += [
        (
            f"probe, tau {tau:g}",
            _apply_head(apply_tau_normalisation(plain.weight, plain.bias, tau), unseen),
            counts,
            test_labels,
        )
        for tau in TAU_GRID[1:]
    ]
    return heads


def _choose_strength(
    fitted: CrossValidatedHead, labels: NDArray[np.int64], shift: Tensor
) -> tuple[float, float]:
    """Return the temperature and the strength that out-of-fold predictions choose."""
    logits = fitted.held_out_probabilities.clamp_min(1e-30).log()
    target = torch.from_numpy(labels[fitted.held_out_rows])
    temperature = fit_temperature(logits, target)
    choice = choose_strength(logits / temperature, target, shift, metric="macro_f1")
    return temperature, choice.strength


def _apply_head(head: tuple[Tensor, Tensor], features: NDArray[np.float32]) -> Tensor:
    return torch.from_numpy(features) @ head[0].T + head[1]


def _train_head(
    name: str, data: TrainingData, table: NDArray[np.float32], seed: int
) -> tuple[Tensor, Tensor]:
    """Train a head with AdamW and the strategy's sampler and loss."""
    labels, counts = data.train.labels, data.class_counts
    changes = {"imbalance.strategy": name, "trainer.epochs": _EPOCHS}
    config = apply_imbalance_strategy(replace_values(Config(), changes))
    is_plain = config.loss.name == "cross_entropy"
    config = replace_values(config, {"loss.label_smoothing": 0.1 if is_plain else 0.0})
    imbalance = ResolvedImbalanceConfig.model_validate(config.imbalance.model_dump())
    criterion_schedule = build_criterion_schedule(
        ResolvedLossConfig.model_validate(config.loss.model_dump()),
        counts,
        build_class_weights(imbalance, counts, num_epochs=_EPOCHS),
    )
    sampler = EpochSampler(
        build_sampling_schedule(imbalance, data, num_epochs=_EPOCHS),
        num_images=len(labels),
        batch_size=min(_BATCH, len(counts) * min(counts)),
        seed=seed,
    )
    weight = torch.zeros(len(counts), table.shape[1], requires_grad=True)
    bias = torch.zeros(len(counts), requires_grad=True)
    optimizer = torch.optim.AdamW([weight, bias], lr=_LR, weight_decay=0.05)
    steps = _EPOCHS * (len(sampler) // min(_BATCH, len(counts) * min(counts)))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, steps))
    images, target = torch.from_numpy(table), torch.from_numpy(labels)
    for epoch in range(_EPOCHS):
        sampler.set_epoch(epoch)
        drawn = torch.tensor([draw.row for draw in sampler])
        for rows in torch.split(drawn, min(_BATCH, len(counts) * min(counts))):
            loss = criterion_schedule(epoch)(images[rows] @ weight.T + bias, target[rows])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    return weight.detach(), bias.detach()


def compute_scores(
    confusion: NDArray[np.float64], counts: Sequence[int]
) -> tuple[float, float, float]:
    """Return balanced accuracy, and accuracy and macro-F1 at the training class frequencies.

    Args:
        confusion: Test images by true class (rows) and predicted class, shape (K, K).
        counts: Training images of each class, shape (K,).
    """
    recalls = confusion / confusion.sum(axis=1, keepdims=True)
    natural = recalls * np.asarray(normalize_prior(counts))[:, None]
    f1 = 2 * natural.diagonal() / (natural.sum(axis=0) + natural.sum(axis=1))
    return float(recalls.diagonal().mean()), float(natural.trace()), float(f1.mean())


def _print_table(
    rows: Mapping[tuple[str, float], Sequence[tuple[float, float, float]]], ratios: Sequence[float]
) -> None:
    names = list(dict.fromkeys(name for name, _ in rows))
    print("\nbalanced accuracy, standard deviation over seeds, (accuracy, macro-F1)")
    width = max(map(len, names))
    print(f"{'':<{width}}" + "".join(f"{f'ratio {ratio:g}':>24}" for ratio in ratios))
    for name in names:
        cells = []
        for ratio in ratios:
            balanced, natural, f1 = zip(*rows[name, ratio], strict=True)
            spread = statistics.stdev(balanced) if len(balanced) > 1 else 0.0
            cells.append(
                f"{100 * statistics.mean(balanced):.1f} +-{100 * spread:.1f} "
                f"({100 * statistics.mean(natural):.1f}, {100 * statistics.mean(f1):.1f})"
            )
        print(f"{name:<{width}}" + "".join(f"{cell:>24}" for cell in cells))


def _evaluate_fits(options: Namespace) -> None:
    rows: dict[tuple[str, float], list[tuple[float, float, float]]] = {}
    for seed in range(options.seeds):
        for ratio in options.ratio:
            folder = options.folder / f"{options.photos.name}-{ratio:g}-{seed}"
            train, test = _draw_samples(options, ratio, seed)
            _link(options.photos.resolve(), folder, train, test)
            for name in options.strategies:
                start = time.perf_counter()
                results = _fit_and_evaluate(options, folder, name, seed)
                for prior, result in results.items():
                    row = f"{name}{prior}"
                    matrix = result["confusion_matrix"]
                    labels = [sample.label for sample in train]
                    scores = compute_scores(
                        np.array(matrix["counts"], float),
                        [labels.count(name) for name in matrix["classes"]],
                    )
                    rows.setdefault((row, ratio), []).append(scores)
                    print(
                        f"seed {seed} ratio {ratio:g} {row}: {scores[0]:.4f} "
                        f"({scores[1]:.4f}, {scores[2]:.4f}), {time.perf_counter() - start:.0f} s",
                        flush=True,
                    )
    _print_table(rows, options.ratio)


def _link(photos: Path, folder: Path, train: Sequence[Sample], test: Sequence[Sample]) -> None:
    for part, samples in (("photos", train), ("test", test)):
        for sample in samples:
            link = folder / part / sample.label / Path(sample.path).name
            link.parent.mkdir(parents=True, exist_ok=True)
            if not link.is_symlink():
                link.symlink_to(photos / sample.path)


def _fit_and_evaluate(options: Namespace, folder: Path, name: str, seed: int) -> dict[str, Any]:
    """Return the evaluation of a run on the test set, without and with a uniform prior."""
    run = folder / f"run-{name}"
    if not (run / ".done").is_file():
        _run_finetune(
            "fit", str(folder / "photos"), "--backbone", options.backbone,
            "--weights", options.weights, "--imbalance", name, "--seed", str(seed),
            "--image-size", str(options.image_size), "--output", str(run),
            "data.leakage=ignore", "data.min_images_per_class=1",
        )  # fmt: skip
    priors = {"": [], ", uniform prior": ["--prior", "uniform"]} if name == "none" else {"": []}
    return {
        row: json.loads(_run_finetune("evaluate", str(run), str(folder / "test"), *prior, "--json"))
        for row, prior in priors.items()
    }


def _run_finetune(*args: str) -> str:
    command = [sys.executable, "-m", "finetune", *args]
    process = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ)
    if process.returncode:
        raise SystemExit(process.stderr)
    return process.stdout


if __name__ == "__main__":
    main()
