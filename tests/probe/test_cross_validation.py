"""Cross-validated heads: choice of the penalty, held-out scores and the logit offset."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from finetune.evaluation.grouped_folds import encode_groups
from finetune.probe.cross_validation import extract_features, fit_head
from finetune.probe.penalty_search import PENALTIES
from finetune.types import Reporter
from tests.support.runs import create_small_training


def make_clusters(
    num_images: int, *, noise: float, seed: int = 0
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return features of three classes, of which 2 of 60 columns are informative."""
    random = np.random.default_rng(seed)
    labels = random.permutation(np.arange(num_images) % 3)
    features = random.normal(size=(num_images, 60))
    angle = 2 * np.pi * labels / 3
    features[:, :2] = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    features[:, :2] += noise * random.normal(size=(num_images, 2))
    return features.astype(np.float32), labels


def test_fit_head_noisy_features_chooses_larger_penalty() -> None:
    chosen = {}
    for noise in (0.05, 1.0):
        features, labels = make_clusters(120, noise=noise)
        chosen[noise] = fit_head([features], labels, np.ones(120), num_classes=3).penalty
    assert chosen[0.05] < chosen[1.0]
    assert set(chosen.values()) <= set(PENALTIES)


def test_fit_head_held_out_accuracy_estimates_accuracy_on_new_images() -> None:
    features, labels = make_clusters(3000, noise=0.6)
    fitted = fit_head([features[:300]], labels[:300], np.ones(300), num_classes=3)
    is_correct = fitted.head.compute_logits(features[300:]).argmax(dim=1).numpy() == labels[300:]
    assert len(fitted.held_out_rows) == 300
    assert fitted.held_out_accuracy == pytest.approx(is_correct.mean(), abs=0.06)
    on_train = fitted.head.compute_logits(features[:300]).argmax(dim=1).numpy() == labels[:300]
    assert fitted.held_out_accuracy < on_train.mean(), "training accuracy is optimistic"


def test_fit_head_holds_out_all_views_of_an_image_together() -> None:
    """Otherwise a flipped image would reveal its label, and no penalty would be too small."""
    features, labels = make_clusters(90, noise=3.0)
    one_view = fit_head([features], labels, np.ones(90), num_classes=3)
    two_views = fit_head([features, features], labels, np.ones(90), num_classes=3)
    assert two_views.penalty == one_view.penalty
    assert two_views.held_out_accuracy == pytest.approx(one_view.held_out_accuracy, abs=0.03)


def test_fit_head_class_weights_raise_recall_of_rare_class() -> None:
    random = np.random.default_rng(0)
    labels = np.repeat([0, 1], [180, 20])
    features = (labels[:, None] + random.normal(size=(200, 1))).astype(np.float32)
    recall = {}
    for name, rare_weight in (("plain", 1.0), ("balanced", 9.0)):
        weights = np.where(labels == 1, rare_weight, 1.0)
        head = fit_head([features], labels, weights, num_classes=2).head
        recall[name] = float(
            (head.compute_logits(features).argmax(dim=1).numpy()[labels == 1] == 1).mean()
        )
    assert recall["balanced"] > recall["plain"] + 0.3


def test_fit_head_many_images_holds_out_one_fold() -> None:
    features, labels = make_clusters(200, noise=0.3)
    fitted = fit_head([features], labels, np.ones(200), num_classes=3, max_images_for_all_folds=100)
    assert 38 <= len(fitted.held_out_rows) <= 42
    assert (fitted.num_folds, fitted.num_held_out_folds) == (5, 1)


def make_exposures(
    num_scenes: int, num_exposures: int, *, seed: int = 0
) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.int64]]:
    """Return features, labels and scenes of images, several neighbouring ones of each scene.

    The scenes of a class differ far more than the exposures of a scene.
    """
    random = np.random.default_rng(seed)
    scene_features, scene_labels = make_clusters(num_scenes, noise=0.7, seed=seed)
    order = np.argsort(scene_labels, kind="stable")
    features = np.repeat(scene_features[order], num_exposures, axis=0)
    features += 0.2 * random.normal(size=features.shape)
    scenes = np.repeat(np.arange(num_scenes), num_exposures)
    return features.astype(np.float32), scene_labels[order][scenes], scenes


@pytest.mark.parametrize("is_grouped", [True, False])
def test_fit_head_held_out_accuracy_is_that_on_new_scenes(is_grouped: bool) -> None:
    """With the exposures of a scene in several folds, the accuracy would be nearly 1."""
    features, labels, scenes = make_exposures(90, 6)
    groups = encode_groups([str(scene) for scene in scenes]) if is_grouped else None
    fitted = fit_head([features], labels, np.ones(540), num_classes=3, groups=groups)
    new_features, new_labels = make_clusters(3000, noise=0.7, seed=1)
    is_correct = fitted.head.compute_logits(new_features).argmax(dim=1).numpy() == new_labels
    assert fitted.held_out_accuracy == pytest.approx(is_correct.mean(), abs=0.08)
    for scene in range(90):
        assert len(set(fitted.folds[scenes == scene])) == 1
    assert 85 <= fitted.num_groups <= 90
    dealt = np.arange(540) % 5
    nearest = [
        labels[dealt != fold][np.square(features[dealt != fold] - row).sum(axis=1).argmin()]
        == label
        for row, label, fold in zip(features, labels, dealt, strict=True)
    ]
    assert np.mean(nearest) == 1, "the exposures must be easy to recognise"


def test_fit_head_class_of_one_group_is_not_judged() -> None:
    features, labels = make_clusters(90, noise=0.3)
    groups = encode_groups(["one" if label == 2 else "" for label in labels])
    fitted = fit_head([features], labels, np.ones(90), num_classes=3, groups=groups)
    np.testing.assert_array_equal(fitted.held_out_rows, np.flatnonzero(labels != 2))
    assert fitted.held_out_accuracy > 0.8
    assert fitted.head.compute_logits(features).argmax(dim=1).numpy()[labels == 2].tolist().count(2)


@pytest.mark.parametrize("labels", [[0], [0, 1], [0, 0, 0, 1]])
def test_fit_head_very_few_images_is_finite(labels: list[int]) -> None:
    features = np.eye(len(labels), 5, dtype=np.float32)
    fitted = fit_head([features], np.asarray(labels), np.ones(len(labels)), num_classes=2)
    assert np.isfinite(fitted.head.compute_logits(features).numpy()).all()
    assert np.isfinite(fitted.held_out_loss)


def make_long_tailed() -> tuple[NDArray[np.float32], NDArray[np.int64], Tensor]:
    """Return features and labels of classes of 400, 80 and 20, and their log frequencies."""
    random = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], [400, 80, 20])
    features = random.normal(size=(500, 4)).astype(np.float32)
    features[np.arange(500), labels] += 1.5
    return features, labels, torch.tensor([0.8, 0.16, 0.04]).log()


def test_fit_head_logit_offset_minimises_adjusted_loss() -> None:
    """At the minimum the gradient of the adjusted loss is minus that of the penalty."""
    features, labels, offset = make_long_tailed()
    fitted = fit_head([features], labels, np.ones(500), num_classes=3, logit_offset=offset)
    weight, bias = (
        tensor.clone().requires_grad_() for tensor in (fitted.head.weight, fitted.head.bias)
    )
    logits = torch.from_numpy(features) @ weight.T + bias + offset
    loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels))
    weight_grad, bias_grad = torch.autograd.grad(loss, [weight, bias])
    centred = features - features.mean(axis=0)
    norm = np.square(centred).sum(axis=1).mean()  # the penalty applies to scaled features
    torch.testing.assert_close(
        weight_grad, -fitted.penalty * float(norm) * weight.detach(), rtol=0.05, atol=2e-4
    )
    torch.testing.assert_close(bias_grad, torch.zeros(3), rtol=0, atol=2e-4)


def test_fit_head_logit_offset_raises_recall_of_rare_classes() -> None:
    features, labels, offset = make_long_tailed()
    plain = fit_head([features], labels, np.ones(500), num_classes=3)
    adjusted = fit_head([features], labels, np.ones(500), num_classes=3, logit_offset=offset)
    recall = []
    for fitted in (plain, adjusted):
        is_correct = fitted.head.compute_logits(features).argmax(dim=1).numpy() == labels
        recall.append(np.mean([is_correct[labels == k].mean() for k in range(3)]))
        # a problem for which few images suffice
        assert fitted.held_out_accuracy == pytest.approx(is_correct.mean(), abs=0.03)
    assert recall[1] > recall[0] + 0.1
    assert adjusted.held_out_accuracy < plain.held_out_accuracy
    assert (adjusted.penalty, adjusted.held_out_loss) == (plain.penalty, plain.held_out_loss)


@pytest.mark.parametrize(("num_images", "num_held_out"), [(60, 60), (130, 26)])
def test_fit_head_held_out_probabilities_do_not_depend_on_chunk_size(
    num_images: int, num_held_out: int
) -> None:
    features, labels = make_clusters(num_images, noise=0.3)
    small, large = (
        fit_head(
            [features],
            labels,
            np.ones(num_images),
            num_classes=3,
            max_images_for_all_folds=100,
            chunk_rows=chunk_rows,
        )
        for chunk_rows in (7, 8192)
    )
    torch.testing.assert_close(small.held_out_probabilities, large.held_out_probabilities)
    rows = large.held_out_rows
    assert len(rows) == len(large.held_out_probabilities) == num_held_out
    accuracy = (large.held_out_probabilities.argmax(dim=1).numpy() == labels[rows]).mean()
    assert accuracy == pytest.approx(large.held_out_accuracy)


def test_extract_features_keeps_modes(place: Path) -> None:
    training = create_small_training(
        place / "photos",
        model__weights=str(place / "weights.pth"),
        data__cache=str(place / "cache"),
    )
    assert training.probe is not None
    classifier, images = training.module.classifier, training.probe.train
    modes = [module.training for module in classifier.modules()]
    features = extract_features(
        classifier,
        images.paths,
        extraction=training.probe.extraction,
        device=torch.device("cpu"),
        reporter=Reporter(),
    )
    assert modes == [module.training for module in classifier.modules()]
    assert features.shape[0] == len(images.paths)
    assert np.isfinite(features[:]).all()
