"""Scores that tell images of no class from those of the classes, compared on runs.

Thresholds are chosen on the validation images of each run, for 5% of false rejections. Usage:

    python scripts/benchmarks/rejection.py RUN... --unknown FOLDER... [--max-images 300]

Each unknown folder holds images of no class of the runs. Compared are the maximum probability
(Hendrycks and Gimpel 2017), the maximum logit (Hendrycks et al. 2022), the energy (Liu et al.
2020), the Mahalanobis distance with a shared covariance, also of normalized features (Lee et al.
2018), its relative form (Ren et al. 2021), and the distance to the fifth nearest training image
(Sun et al. 2022), which ``predict --reject`` uses.
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.covariance import LedoitWolf
from sklearn.metrics import roc_auc_score

from finetune.bundle.bundle import load_model
from finetune.commands.run_images import read_run_images
from finetune.data.file_listing import find_rejection_reason, walk_files
from finetune.data.training_data import TrainingData
from finetune.evaluation.rejection.distance_threshold import choose_distance_threshold
from finetune.evaluation.rejection.feature_distance import compute_distances, normalize_features
from finetune.inference.predictor import Predictor
from finetune.inference.rejection.feature_pass import predict_features

RATE = 0.05
Array = NDArray[np.float64]
Score = Callable[[Array, Array], Array]


def main() -> None:
    """Print a table for each run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--unknown", nargs="+", type=Path, required=True)
    parser.add_argument("--max-images", type=int, default=300, help="of each unknown folder")
    args = parser.parse_args()
    for run in args.runs:
        unknown = {folder.name: list_images(folder, args.max_images) for folder in args.unknown}
        compare(run, unknown)


def list_images(folder: Path, max_images: int) -> list[Path]:
    """Return some images below a folder, always the same ones."""
    files = [file for file in walk_files(folder) if find_rejection_reason(file) is None]
    rows = np.random.default_rng(0).permutation(len(files))[:max_images]
    return [files[row] for row in sorted(rows.tolist())]


def compare(path: Path, unknown: dict[str, list[Path]]) -> None:
    """Print the AUROC and the rejected fraction of unknown images for each score."""
    bundle, run = load_model(path), read_run_images(path)
    assert run is not None, f"{path} is no run"
    data = TrainingData.from_manifest(run.manifest)
    predictor = Predictor(bundle, device="cuda" if torch.cuda.is_available() else "cpu")

    def extract(files: Sequence[Path]) -> tuple[Array, Array]:
        logits, features = predict_features(bundle, predictor, files, option="this script")
        return features.double().numpy(), logits[:, 0].double().numpy()

    train, _ = extract(data.train.paths)
    scores = build_scores(train, data.train.labels)
    val = extract(data.val.paths)
    others = {name: extract(files) for name, files in unknown.items()}
    accuracy = (val[1].argmax(1) == data.val.labels).mean()
    print(
        f"\n{path.name}: {len(train)} training and {len(data.val)} validation images, accuracy "
        f"{accuracy:.1%}, {train.shape[1]} features"
    )
    print(f"{'score':<24}" + "".join(f"{name[:20]:>22}" for name in others))
    for name, score in scores.items():
        known = score(*val)
        threshold = choose_distance_threshold(known, rate=RATE)
        assert threshold is not None, "at least 19 validation images"
        cells = []
        for outputs in others.values():
            values = score(*outputs)
            truth = np.repeat([0, 1], [len(known), len(values)])
            auroc = roc_auc_score(truth, np.concatenate([known, values]))
            cells.append(f"{auroc:14.3f} {(values > threshold.threshold).mean():7.1%}")
        print(f"{name:<24}" + "".join(cells))


def build_scores(train: Array, labels: NDArray[np.int64]) -> dict[str, Score]:
    """Return functions of features (N, D) and logits (N, K) that are larger for unknown images."""
    unit = normalize_features(train)
    mahalanobis, relative = build_mahalanobis(train, labels)
    of_unit, _ = build_mahalanobis(unit.astype(np.float64), labels)
    return {
        "maximum probability": lambda _, logits: -softmax(logits).max(1),
        "maximum logit": lambda _, logits: -logits.max(1),
        "energy": lambda _, logits: -np.logaddexp.reduce(logits, axis=1),
        "Mahalanobis": lambda features, _: mahalanobis(features),
        "relative Mahalanobis": lambda features, _: relative(features),
        "normalized Mahalanobis": lambda features, _: of_unit(
            normalize_features(features).astype(np.float64)
        ),
        "5th nearest neighbour": lambda features, _: compute_distances(features, unit).astype(
            np.float64
        ),
    }


def build_mahalanobis(
    train: Array, labels: NDArray[np.int64]
) -> tuple[Callable[[Array], Array], Callable[[Array], Array]]:
    """Return the distance to the nearest class mean, and that minus the one to the mean of all.

    The covariance within classes has the shrinkage of Ledoit and Wolf (2004), without which it is
    singular for fewer images than features. That of all images is the same plus that of the class
    means, so that both distances have the same shrinkage.
    """
    counts = np.bincount(labels)
    means: Array = np.stack([train[labels == label].mean(0) for label in range(len(counts))])
    center = train.mean(0)
    within = LedoitWolf(assume_centered=True).fit(train - means[labels]).covariance_
    spread = means - center
    between = spread.T @ (spread * (counts / counts.sum())[:, None])
    precision, precision_all = np.linalg.inv(within), np.linalg.inv(within + between)

    def compute(features: Array) -> Array:
        nearest: Array = np.min([square(features - mean, precision) for mean in means], axis=0)
        return nearest

    def compute_relative(features: Array) -> Array:
        return compute(features) - square(features - center, precision_all)

    return compute, compute_relative


def square(difference: Array, precision: Array) -> Array:
    """Return the squared lengths of vectors (N, D) in the metric of a precision matrix."""
    result: Array = ((difference @ precision) * difference).sum(1)
    return result


def softmax(logits: Array) -> Array:
    """Return probabilities of logits, both (N, K)."""
    result: Array = np.exp(logits - np.logaddexp.reduce(logits, axis=1)[:, None])
    return result


if __name__ == "__main__":
    main()
