"""Measures what each strategy against class imbalance is worth, on photos of your own.

    uv run python scripts/benchmarks/imbalance.py heads photos/ --weights resnet18.pth
    uv run python scripts/benchmarks/imbalance.py fits photos/ --weights resnet18.pth --ratio 50

The photos are a folder of class folders. For each seed equally many of each class are held out for
the test, which stays balanced and whole; the others are thinned to an exponential profile, from the
largest class down to one a ratio smaller, the classes in a random order. `heads` trains linear
heads on features of the frozen backbone with every strategy: by steps of AdamW with the strategy's
own sampler and loss, and by the logistic regression that a run begins with. `fits` runs
`finetune fit` with its defaults on the thinned folder, and `finetune evaluate` on the test.

Balanced accuracy is that of the test; the natural one is what it would be with the classes in the
shares of the training images.
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

from finetune.builders.criterion import build_criterion_schedule
from finetune.builders.sampling import build_sampling_schedule
from finetune.config.imbalance import IMBALANCE_STRATEGIES, with_imbalance
from finetune.config.load import replace_values
from finetune.config.schema import Config
from finetune.data.dataset import ImageDataset, create_loader
from finetune.data.images.source import FileSource
from finetune.data.manifest import Manifest
from finetune.data.samplers.epoch_sampler import EpochSampler
from finetune.data.scan import scan
from finetune.data.transforms.eval_transform import EvalTransform
from finetune.evaluation.priors import compute_logit_shift, shares_of, uniform
from finetune.models.backbone import create_network
from finetune.models.classifier import normalise
from finetune.models.head import capture_head_inputs, linear_head
from finetune.probe.cross_validation import fit_head
from finetune.probe.tau_norm import TAU_GRID, tau_normalised
from finetune.types import Sample, Split

_EPOCHS, _BATCH, _LR = 40, 32, 1e-3


def thinned(
    samples: Sequence[Sample], *, ratio: float, largest: int, held_out: int, seed: int
) -> tuple[list[Sample], list[Sample]]:
    """Return training samples of an exponential profile, and a balanced test.

    Args:
        samples: Of all classes.
        ratio: Largest class over the smallest.
        largest: Training images of the largest class; fewer where there are too few for it.
        held_out: Test images of each class.
        seed: Of the draw and of the classes' order.
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
    shares = [ratio ** (-place / (len(names) - 1)) for place in range(len(names))]
    there_are = sorted(map(len, by_class.values()), reverse=True)
    largest = min(largest, *(int(n / share) for n, share in zip(there_are, shares, strict=True)))
    sizes = [max(1, round(largest * share)) for share in shares]
    while True:  # a small class cannot stand in a large one's place
        rng.shuffle(names)
        if all(len(by_class[name]) >= size for name, size in zip(names, sizes, strict=True)):
            break
    train = [s for name, size in zip(names, sizes, strict=True) for s in by_class[name][:size]]
    return train, test


def main() -> None:
    """Measure heads on features, or whole fits."""
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
    parser.add_argument("--strategies", nargs="+", default=["none", "auto"], help="of fits")
    parser.add_argument("--folder", type=Path, default=Path("runs/imbalance"))
    options = parser.parse_args()
    if options.mode == "heads":
        _heads(options)
    else:
        _fits(options)


def _profile(options: Namespace, ratio: float, seed: int) -> tuple[list[Sample], list[Sample]]:
    samples = scan(options.photos).samples
    return thinned(
        samples, ratio=ratio, largest=options.largest, held_out=options.held_out, seed=seed
    )


def _heads(options: Namespace) -> None:
    torch.manual_seed(0)
    features = _features(options)
    rows: dict[tuple[str, float], list[tuple[float, float]]] = {}
    for ratio in options.ratio:
        for seed in range(options.seeds):
            train, test = _profile(options, ratio, seed)
            for name, logits, counts, labels in _all_heads(options, features, train, test, seed):
                rows.setdefault((name, ratio), []).append(_scores(logits, labels, counts))
            print(f"ratio {ratio:g}, seed {seed} done", file=sys.stderr, flush=True)
    _print_table(rows, options.ratio)


def _features(options: Namespace) -> dict[str, NDArray[np.float32]]:
    """Return what the frozen backbone says of each photo, by its path."""
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
    head = linear_head(network.module)
    assert head is not None
    network.module.eval()
    found = []
    with torch.inference_mode(), head_inputs(head) as seen:
        for batch in create_loader(dataset, batch_size=32, num_workers=0):
            network.module(normalise(batch["image"], mean=spec.mean, std=spec.std))
            found.append(seen.pop().clone())
    table = torch.cat(found).numpy()
    return {sample.path: row for sample, row in zip(samples, table, strict=True)}


def _all_heads(
    options: Namespace,
    features: Mapping[str, NDArray[np.float32]],
    train: Sequence[Sample],
    test: Sequence[Sample],
    seed: int,
) -> "list[tuple[str, Tensor, list[int], NDArray[np.int64]]]":
    """Return the test's logits by each strategy, with the training counts and the test's labels."""
    classes = tuple(sorted({sample.label for sample in train}))
    samples = tuple(Sample(s.path, s.label, Split.TRAIN) for s in train)
    manifest = Manifest(options.photos, classes, samples)
    counts = manifest.class_counts(Split.TRAIN)
    labels = np.asarray(manifest.labels(samples), np.int64)
    true = np.asarray(manifest.labels(test), np.int64)
    table, unseen = (np.stack([features[sample.path] for sample in part]) for part in (train, test))
    shift = torch.tensor(logit_shift(uniform(len(classes)), shares_of(counts)))
    found = []
    for name in IMBALANCE:
        if IMBALANCE[name].head != "none" or name == "post_hoc":
            continue
        weight, bias = _trained(name, manifest, counts, table, labels, seed)
        logits = torch.from_numpy(unseen) @ weight.T + bias
        found.append((name, logits, counts, true))
        if name == "none":
            found.append(("none, post_hoc", logits + shift, counts, true))
            found += [
                (f"none, tau {tau:g}", _by(tau_normalised(weight, bias, tau), unseen), counts, true)
                for tau in TAUS[1:]
            ]
    balanced = 1 / np.asarray(counts, float)[labels]
    plain = fit_head([table], labels, np.ones(len(labels)), num_classes=len(classes)).head
    crt = fit_head([table], labels, balanced, num_classes=len(classes)).head
    found += [
        ("probe", plain.logits(unseen), counts, true),
        ("probe, post_hoc", plain.logits(unseen) + shift, counts, true),
        ("probe, class_weights (crt)", crt.logits(unseen), counts, true),
    ]
    found += [
        (
            f"probe, tau {tau:g}",
            _by(tau_normalised(plain.weight, plain.bias, tau), unseen),
            counts,
            true,
        )
        for tau in TAUS[1:]
    ]
    return found


def _by(head: tuple[Tensor, Tensor], features: NDArray[np.float32]) -> Tensor:
    return torch.from_numpy(features) @ head[0].T + head[1]


def _trained(
    name: str,
    manifest: Manifest,
    counts: Sequence[int],
    table: NDArray[np.float32],
    labels: NDArray[np.int64],
    seed: int,
) -> tuple[Tensor, Tensor]:
    """Train a head by steps, with the strategy's own sampler and loss."""
    changes = {"imbalance.strategy": name, "trainer.epochs": _EPOCHS}
    config = with_imbalance(replaced(Config(), changes))
    plain = config.loss.name == "cross_entropy"
    config = replaced(config, {"loss.label_smoothing": 0.1 if plain else 0.0})
    criterion_at = make_criterion(config, counts)
    sampler = EpochSampler(
        make_sampling(config, manifest),
        num_images=len(labels),
        batch_size=min(_BATCH, len(counts) * min(counts)),
        seed=seed,
    )
    # as long for all: an undersampled epoch is short
    weight = torch.zeros(len(counts), table.shape[1], requires_grad=True)
    bias = torch.zeros(len(counts), requires_grad=True)
    optimizer = torch.optim.AdamW([weight, bias], lr=_LR, weight_decay=0.05)
    steps = _EPOCHS * (len(sampler) // min(_BATCH, len(counts) * min(counts)))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, steps))
    images, target = torch.from_numpy(table), torch.from_numpy(labels)
    for epoch in range(_EPOCHS):
        sampler.set_epoch(epoch)
        drawn = torch.tensor([draw.row for draw in sampler])
        for rows in drawn.split(min(_BATCH, len(counts) * min(counts))):
            loss = criterion_at(epoch)(images[rows] @ weight.T + bias, target[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return weight.detach(), bias.detach()


def _scores(
    logits: Tensor, labels: NDArray[np.int64], counts: Sequence[int]
) -> tuple[float, float]:
    """Return balanced accuracy, and accuracy in the shares of the training images."""
    right = logits.argmax(dim=1).numpy() == labels
    recalls = np.array([right[labels == k].mean() for k in range(len(counts))])
    return float(recalls.mean()), float(recalls @ np.asarray(shares_of(counts)))


def _print_table(
    rows: Mapping[tuple[str, float], Sequence[tuple[float, float]]], ratios: Sequence[float]
) -> None:
    names = list(dict.fromkeys(name for name, _ in rows))
    print("\nbalanced accuracy, its spread over seeds, (natural accuracy)")
    print(f"{'':<28}" + "".join(f"{f'ratio {ratio:g}':>24}" for ratio in ratios))
    for name in names:
        cells = []
        for ratio in ratios:
            balanced, natural = zip(*rows[name, ratio], strict=True)
            spread = statistics.stdev(balanced) if len(balanced) > 1 else 0.0
            cells.append(
                f"{100 * statistics.mean(balanced):.1f} +-{100 * spread:.1f} "
                f"({100 * statistics.mean(natural):.1f})"
            )
        print(f"{name:<28}" + "".join(f"{cell:>24}" for cell in cells))


def _fits(options: Namespace) -> None:
    rows: dict[tuple[str, float], list[tuple[float, float]]] = {}
    for seed in range(options.seeds):
        for ratio in options.ratio:
            folder = options.folder / f"{options.photos.name}-{ratio:g}-{seed}"
            train, test = _profile(options, ratio, seed)
            _link(options.photos.resolve(), folder, train, test)
            for name in options.strategies:
                start = time.perf_counter()
                found = _fitted(options, folder, name, seed)
                for prior, result in found.items():
                    row = f"{name}{prior}"
                    counts = {s.label: 0 for s in train}
                    for sample in train:
                        counts[sample.label] += 1
                    recalls = {k: v["recall"] for k, v in result["per_class"].items()}
                    natural = sum(counts[k] * recalls[k] for k in counts) / len(train)
                    scores = result["metrics"]["balanced_accuracy"], natural
                    rows.setdefault((row, ratio), []).append(scores)
                    print(
                        f"seed {seed} ratio {ratio:g} {row}: {scores[0]:.4f} ({natural:.4f}), "
                        f"{time.perf_counter() - start:.0f} s",
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


def _fitted(options: Namespace, folder: Path, name: str, seed: int) -> dict[str, Any]:
    """Return what the test says of a run, as it is and after post-hoc adjustment."""
    run = folder / f"run-{name}"
    if not (run / ".done").is_file():
        _finetune(
            "fit", str(folder / "photos"), "--backbone", options.backbone,
            "--weights", options.weights, "--imbalance", name, "--seed", str(seed),
            "--image-size", str(options.image_size), "--output", str(run),
            "data.leakage=ignore", "data.min_images_per_class=1",
        )  # fmt: skip
    priors = {"": [], ", uniform prior": ["--prior", "uniform"]} if name == "none" else {"": []}
    return {
        row: json.loads(_finetune("evaluate", str(run), str(folder / "test"), *given, "--json"))
        for row, given in priors.items()
    }


def _finetune(*words: str) -> str:
    command = [sys.executable, "-m", "finetune", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ)
    if done.returncode:
        raise SystemExit(done.stderr)
    return done.stdout


if __name__ == "__main__":
    main()
