"""Made runs by rule: some that a rule accuses, and some like them that it does not."""

from dataclasses import replace

from finetune.diagnosis.evidence import RunEvidence
from tests.diagnosis.made_faults import (
    LOST,
    create_accuracies,
    create_conflicts,
    create_divergence,
    create_explosion,
    create_fall,
    create_frozen,
    create_gap,
    create_label_scores,
    create_layers,
    create_leaks,
    create_losses,
    create_low_rate,
    create_no_gain,
    create_noise,
    create_overfit,
    create_probe_only,
    create_stages,
    create_val,
    create_weights,
)
from tests.diagnosis.made_runs import SETTINGS

FIRING: dict[str, list[RunEvidence]] = {
    "diverged": [
        create_divergence(),
        create_divergence(epoch=1),
        create_divergence(epoch=1, step=1),
        create_divergence(step=None),
    ],
    "exploded_loss": [
        create_explosion(9.0, 9.0),
        create_explosion(1e6, 0.5),
        create_explosion(float("nan"), float("nan")),
        create_explosion(float("inf"), 0.6),
    ],
    "fall_from_probe": [
        create_fall(0.5, 0.5, train=0.5, num_val=150),
        create_fall(0.7, 0.72, train=0.75, num_val=400),
        create_fall(0.5, 0.9, train=0.6, num_val=100),
        create_fall(0.5, 0.5, train=None, num_val=100),
    ],
    "unsteady_loss": [
        create_losses(0.3, 0.6, 0.3, 0.6, 0.3),
        create_losses(0.2, 0.5, 0.9, 0.4, deviation=1.0),
    ],
    "rate_too_low": [
        create_label_scores(0.6, 0.6, change=1e-5),
        create_low_rate(1e-5, 0.5),
        create_low_rate(4e-4, 0.8),
        replace(create_low_rate(1e-5, 0.5), settings={**SETTINGS, "trainer.batch_size": 16}),
    ],
    "phase_jump": [
        create_losses(0.3, 0.28, 0.5, 0.29, opens_at=3),
        create_losses(0.3, 0.28, 0.9, 0.8, opens_at=3),
    ],
    "leaks": [create_leaks(1), create_leaks(6), create_leaks(80)],
    "frozen_too_deep": [
        create_label_scores(0.7, 0.68, groups=("head",)),
        create_frozen(0.6, groups=("head",)),
        create_frozen(0.99, groups=("head",), stages=create_stages(0.2, 0.05)),
        create_probe_only(create_stages(0.3, 0.02)),
    ],
    "no_better_than_guessing": [
        create_val([100, 100], [55, 40]),
        create_val([180, 20], [180, 0]),
    ],
    "underfitting": [
        create_label_scores(0.7, 0.68),
        create_accuracies(0.6, 0.62, train=0.65),
        create_accuracies(0.5, 0.5, train=0.5, num_val=60),
    ],
    "still_improving": [
        create_accuracies(0.3, 0.6, 0.85),
        create_accuracies(0.4, 0.6, num_val=150),
    ],
    "overfitting": [
        create_overfit(0.4, 0.9, calibrated=(0.4, 0.8), train=(0.2, 0.05)),
        create_overfit(0.4, 0.6, calibrated=(0.4, 0.41), train=(0.2, 0.2)),
    ],
    "generalization_gap": [
        create_label_scores(0.99, 0.5),
        create_label_scores(0.99, 0.8),
        create_gap(1.0, 0.5, 120, (4,) * 6),
        create_gap(1.0, 0.85, 150, (120, 120)),
    ],
    "small_validation": [
        create_val([6, 6], [5, 6]),
        create_val([30, 30], [22, 21]),
        create_label_scores(0.8, 0.75, num_images=40),
    ],
    "easier_validation": [
        create_accuracies(0.95, 0.97, train=0.8),
        create_accuracies(0.8, 0.8, train=0.6, num_val=300),
        create_label_scores(0.7, 0.95),
        create_label_scores(0.4, 0.95, val_support=100),
    ],
    "label_errors": [
        create_noise(0.05, 6.7),
        create_noise(0.2, 40.0, is_confirmed=True),
        create_noise(0.0, 0.0, is_confirmed=True),
        create_noise(0.0, 0.0),
        create_label_scores(0.95, 0.9, gain=9.0),
    ],
    "conflicting_duplicates": [create_conflicts(2), create_conflicts(40)],
    "class_never_predicted": [
        create_val([180, 20], [180, 0]),
        create_val([90, 90, 15], [85, 90, 0], train=[400, 400, 20]),
        create_val([100, 30], [100, 0], is_multi_label=True),
    ],
    "weak_rare_class": [
        create_val([100, 100, 20], [96, 95, 8], train=[500, 500, 60]),
        create_val(
            [100, 100, 20],
            [96, 95, 8],
            train=[500, 500, 60],
            settings={**SETTINGS, "imbalance.strategy": "post_hoc"},
        ),
    ],
    "dead_units": [
        create_layers(LOST, {**LOST, "dead": 0.3}),
        create_layers({**LOST, "dead": 0.2}, {**LOST, "dead": 0.9}, units=64),
    ],
    "saturated_units": [create_layers(LOST, {**LOST, "saturated": 0.4})],
    "correlated_maps": [create_layers(LOST, {**LOST, "correlated_pairs": 0.7})],
    "unmoved_layers": [create_weights([0.0, 1e-3, 1e-3, 1e-2, 1e-2], None)],
    "vanishing_gradients": [create_weights(None, [1e-9, 1e-3, 1e-3, 1e-2, 1e-2])],
    "exploding_gradients": [create_weights(None, [1e-3, 1e-3, 1e-3, 1e-2, 1e3])],
    "no_gain": [create_no_gain(best=0)],
    "confused_pair": [create_val([100, 100, 100], [99, 70, 98])],
}

SILENT: dict[str, list[RunEvidence]] = {
    "diverged": [create_explosion(9.0, 9.0)],
    "exploded_loss": [create_explosion(2.0, 1.0), create_explosion(6.9, 6.9)],
    "fall_from_probe": [
        create_fall(0.85, 0.9, train=0.9, num_val=150),
        create_fall(0.5, 0.5, train=0.5, num_val=8),
        create_fall(0.7, 0.7, train=0.99, num_val=400),  # overfitting is another fault
    ],
    "unsteady_loss": [
        create_losses(0.3, 0.35, 0.3, 0.35, 0.3),
        create_losses(0.3, 0.6, 0.3, 0.3, 0.3),
    ],
    "rate_too_low": [
        create_label_scores(0.6, 0.6, change=1e-2),
        create_low_rate(1e-5, 1.0),
        create_low_rate(1e-2, 0.5),
        # two epochs of two steps change weights little at any rate
        replace(create_low_rate(1e-5, 0.5), settings={**SETTINGS, "trainer.batch_size": 100}),
    ],
    "phase_jump": [
        create_losses(0.3, 0.28, 0.3, 0.29, opens_at=3),
        create_losses(0.3, 0.28, 0.9, 0.8),
    ],
    "leaks": [create_leaks(0)],
    "frozen_too_deep": [
        create_frozen(0.6, groups=("head", "layer4", "layer3")),
        create_frozen(0.95, groups=("head",)),
        create_frozen(0.99, groups=("head",), stages=create_stages(0.05, 0.05)),
        create_frozen(0.99, groups=("head", "layer4"), stages=create_stages(0.3, 0.05)),
        create_probe_only(create_stages(-0.1, 0.02)),
    ],
    "no_better_than_guessing": [
        create_val([100, 100], [90, 90]),
        create_val([6, 6], [5, 5]),
        create_val([1], [1]),
    ],
    "underfitting": [
        create_label_scores(0.9, 0.8),
        create_label_scores(0.75, 0.68, num_images=16),
        create_accuracies(0.8, 0.8, train=0.97),
        create_accuracies(0.8, 0.8, train=0.8, num_val=12),
    ],
    "still_improving": [
        create_accuracies(0.6, 0.85, 0.88),
        create_accuracies(0.3, 0.6, num_val=10),
    ],
    "overfitting": [
        create_overfit(0.4, 0.45, calibrated=(0.4, 0.45), train=(0.2, 0.1)),
        create_overfit(0.4, 0.9, calibrated=(0.4, 0.9), train=(0.2, 0.5)),
    ],
    "generalization_gap": [
        create_label_scores(0.95, 0.92),
        create_label_scores(0.95, 0.7, num_images=16),
        create_gap(0.95, 0.93, 150, (120, 120)),
        create_gap(1.0, 0.85, 10, (120, 120)),
    ],
    "small_validation": [
        create_val([50, 50], [45, 45]),
        create_val([50, 50], [25, 25]),
        create_label_scores(0.8, 0.75),
    ],
    "easier_validation": [
        create_accuracies(0.9, 0.9, train=0.88),
        create_accuracies(0.95, 0.97, train=0.8, num_val=20),
        create_label_scores(0.85, 0.9),
        create_label_scores(0.7, 0.95, num_images=16),
        create_label_scores(0.7, 0.95, val_support=100),  # ranking frequent labels is easier
    ],
    "label_errors": [
        create_label_scores(0.95, 0.9, gain=3.0),
        create_label_scores(0.95, 0.5, gain=9.0),
        create_noise(0.01, 2.0, is_listed=False),
        create_noise(0.3, 7.7, correct=94, is_listed=False),
    ],
    "conflicting_duplicates": [create_conflicts(0)],
    "class_never_predicted": [
        create_val([180, 2], [170, 0]),
        create_val([100, 100], [90, 1]),
    ],
    "weak_rare_class": [
        create_val([100, 100, 20], [96, 95, 18], train=[500, 500, 60]),
        create_val([100, 100, 20], [96, 95, 8], train=[500, 500, 500]),
    ],
    "dead_units": [
        create_layers({**LOST, "dead": 0.5}, {**LOST, "dead": 0.5}),
        create_layers(LOST, {**LOST, "dead": 0.2}, units=10),
        create_layers(LOST, {}),
    ],
    "saturated_units": [create_layers({**LOST, "saturated": 0.6}, {**LOST, "saturated": 0.6})],
    "correlated_maps": [
        create_layers({**LOST, "correlated_pairs": 0.6}, {**LOST, "correlated_pairs": 0.7})
    ],
    "unmoved_layers": [
        create_weights([1e-4, 1e-3, 1e-3, 1e-2, 1e-2], None),
        create_weights([0.0] * 5, None),  # the probe was kept
    ],
    "vanishing_gradients": [create_weights(None, [1e-5, 1e-3, 1e-3, 1e-2, 1e-2])],
    "exploding_gradients": [
        create_weights(None, [1e-3, 1e-3, 1e-3, 1e-2, 1e-1]),
        # branches whose output is scaled by 1e-6 at first, and a layer outside of them
        create_weights(None, [1e-6, 1e-6, 1e-6, 1e-6, 0.6]),
        # a head that began with zeros
        create_weights([1e-2, 1e-2, 1e-2, 1e-2, None], [1e-3, 1e-3, 1e-3, 1e-2, 1e3]),
    ],
    "no_gain": [create_no_gain(best=1)],
    "confused_pair": [
        create_val([100, 100, 100], [95, 95, 95]),
        create_val([100, 100], [70, 98]),
    ],
}
