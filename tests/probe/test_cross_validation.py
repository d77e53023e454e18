"""The penalty is the one that leaves images best explained that the fit has not seen."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from finetune.probe import cross_validation as choice
from finetune.probe.cross_validation import PENALTIES, assign_stratified_folds, fit_head


def clouds(
    num_images: int, *, noise: float, seed: int = 0
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return features of three classes, of which 2 of 60 columns tell something."""
    random = np.random.default_rng(seed)
    labels = random.permutation(np.arange(num_images) % 3)
    features = random.normal(size=(num_images, 60))
    angle = 2 * np.pi * labels / 3
    features[:, :2] = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    features[:, :2] += noise * random.normal(size=(num_images, 2))
    return features.astype(np.float32), labels


def test_noise_asks_for_a_larger_penalty_than_a_clear_case() -> None:
    chosen = {}
    for noise in (0.05, 1.0):
        features, labels = clouds(120, noise=noise)
        chosen[noise] = fit_head([features], labels, np.ones(120), num_classes=3).penalty
    assert chosen[0.05] < chosen[1.0]
    assert set(chosen.values()) <= set(PENALTIES)


def test_what_is_said_of_images_left_out_holds_for_new_ones() -> None:
    features, labels = clouds(3000, noise=0.6)
    found = fit_head([features[:300]], labels[:300], np.ones(300), num_classes=3)
    right = found.head.compute_logits(features[300:]).argmax(dim=1).numpy() == labels[300:]
    assert len(found.held_out_rows) == 300
    assert found.held_out_accuracy == pytest.approx(right.mean(), abs=0.06)
    seen = found.head.compute_logits(features[:300]).argmax(dim=1).numpy() == labels[:300]
    assert found.held_out_accuracy < seen.mean(), "what was fitted looks better than it is"


def test_a_copy_of_an_image_is_left_out_with_it() -> None:
    """Otherwise each image would be known by its mirror, and no penalty be too small."""
    features, labels = clouds(90, noise=3.0)
    alone = fit_head([features], labels, np.ones(90), num_classes=3)
    twice = fit_head([features, features], labels, np.ones(90), num_classes=3)
    assert twice.penalty == alone.penalty
    assert twice.held_out_accuracy == pytest.approx(alone.held_out_accuracy, abs=0.03)


def test_weights_move_the_head_towards_rare_classes() -> None:
    random = np.random.default_rng(0)
    labels = np.repeat([0, 1], [180, 20])
    features = (labels[:, None] + random.normal(size=(200, 1))).astype(np.float32)
    recall = {}
    for name, of_rare in (("plain", 1.0), ("balanced", 9.0)):
        weights = np.where(labels == 1, of_rare, 1.0)
        head = fit_head([features], labels, weights, num_classes=2).head
        recall[name] = float(
            (head.compute_logits(features).argmax(dim=1).numpy()[labels == 1] == 1).mean()
        )
    assert recall["balanced"] > recall["plain"] + 0.3


def test_of_very_many_images_one_fold_tells_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "_MAX_IMAGES_FOR_ALL_FOLDS", 100)
    features, labels = clouds(200, noise=0.3)
    found = fit_head([features], labels, np.ones(200), num_classes=3)
    assert len(found.held_out_rows) == 40


@pytest.mark.parametrize("counts", [[10, 10], [3, 50], [1, 1, 30]])
def test_folds_share_each_class_evenly(counts: list[int]) -> None:
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts)), counts))
    folds = assign_stratified_folds(labels, 5)
    for label, count in enumerate(counts):
        sizes = np.bincount(folds[labels == label], minlength=5)
        assert sizes.max() - sizes.min() <= 1
        assert sizes.sum() == count
    np.testing.assert_array_equal(folds, assign_stratified_folds(labels, 5))


@pytest.mark.parametrize("labels", [[0], [0, 1], [0, 0, 0, 1]])
def test_a_handful_of_images_has_a_head_too(labels: list[int]) -> None:
    features = np.eye(len(labels), 5, dtype=np.float32)
    found = fit_head([features], np.asarray(labels), np.ones(len(labels)), num_classes=2)
    assert np.isfinite(found.head.compute_logits(features).numpy()).all()
    assert np.isfinite(found.held_out_loss)


def long_tailed() -> tuple[NDArray[np.float32], NDArray[np.int64], Tensor]:
    """Return features of three overlapping classes of 400, 80 and 20, and the log of the shares."""
    random = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], [400, 80, 20])
    features = random.normal(size=(500, 4)).astype(np.float32)
    features[np.arange(500), labels] += 1.5
    return features, labels, torch.tensor([0.8, 0.16, 0.04]).log()


def test_an_offset_is_added_in_the_fit_alone() -> None:
    """At the minimum of the adjusted loss its gradient is that of the penalty, by autograd."""
    features, labels, offset = long_tailed()
    found = fit_head([features], labels, np.ones(500), num_classes=3, logit_offset=offset)
    weight, bias = (part.clone().requires_grad_() for part in (found.head.weight, found.head.bias))
    logits = torch.from_numpy(features) @ weight.T + bias + offset
    loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels))
    by_weight, by_bias = torch.autograd.grad(loss, [weight, bias])
    centred = features - features.mean(axis=0)
    norm = np.square(centred).sum(axis=1).mean()  # of which the penalty is on scaled features
    torch.testing.assert_close(
        by_weight, -found.penalty * float(norm) * weight.detach(), rtol=0.05, atol=2e-4
    )
    torch.testing.assert_close(by_bias, torch.zeros(3), rtol=0, atol=2e-4)


def test_an_offset_helps_rare_classes_and_is_seen_in_the_accuracy() -> None:
    features, labels, offset = long_tailed()
    plain = fit_head([features], labels, np.ones(500), num_classes=3)
    adjusted = fit_head([features], labels, np.ones(500), num_classes=3, logit_offset=offset)
    recall = []
    for found in (plain, adjusted):
        right = found.head.compute_logits(features).argmax(dim=1).numpy() == labels
        recall.append(np.mean([right[labels == k].mean() for k in range(3)]))
        # cross-validated, of a problem that few images suffice for
        assert found.held_out_accuracy == pytest.approx(right.mean(), abs=0.03)
    assert recall[1] > recall[0] + 0.1
    assert adjusted.held_out_accuracy < plain.held_out_accuracy
    assert (adjusted.penalty, adjusted.held_out_loss) == (plain.penalty, plain.held_out_loss)


def test_answers_about_images_left_out_do_not_depend_on_how_many_are_read_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(choice, "_MAX_IMAGES_FOR_ALL_FOLDS", 100)
    found = {}
    for num_images in (60, 130):
        features, labels = clouds(num_images, noise=0.3)
        for part in (7, 8192):
            monkeypatch.setattr(choice, "_CHUNK_ROWS", part)
            fitted = fit_head([features], labels, np.ones(num_images), num_classes=3)
            found[part] = fitted.held_out_probabilities
        torch.testing.assert_close(found[7], found[8192])
        rows = fitted.held_out_rows
        assert len(rows) == len(fitted.held_out_probabilities) == (60 if num_images == 60 else 26)
        right = (fitted.held_out_probabilities.argmax(dim=1).numpy() == labels[rows]).mean()
        assert right == pytest.approx(fitted.held_out_accuracy)
