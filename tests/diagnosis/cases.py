"""Made runs by rule: some that a rule accuses, and some like them that it does not."""

from dataclasses import replace
from typing import Any

from finetune.diagnosis.evidence import (
    LabelError,
    LayerHealth,
    LayerWeights,
    NetworkEvidence,
    RunEvidence,
    StageEvidence,
)
from tests.diagnosis.made_runs import (
    SETTINGS,
    create_good_run,
    create_row,
    create_run,
    create_validation,
)


def _create_fall(lowest: float, last: float, *, train: float | None, num_val: int) -> RunEvidence:
    """Create a run whose accuracy falls from 90% of a probe."""
    run = create_run(
        create_row(0, val=(0.3, 0.9), train=(0.2, 0.95)),
        create_row(1, val=(0.7, lowest), train=None if train is None else (0.7, train)),
        create_row(2, val=(0.7, last), train=None if train is None else (0.7, train)),
    )
    return replace(run, data=replace(run.data, num_val=num_val, num_train_eval=num_val))


def _create_explosion(first: float, last: float) -> RunEvidence:
    return create_run(
        create_row(0, val=(0.3, 0.9), train=(0.2, 0.95)),
        create_row(1, val=(first, 0.5), train=(first, 0.5)),
        create_row(2, val=(last, 0.5), train=(last, 0.5)),
    )


def _create_losses(
    *losses: float, deviation: float = 0.5, opens_at: int | None = None
) -> RunEvidence:
    """Create a run whose training and validation losses are given by epoch.

    Args:
        losses: Loss of each epoch.
        deviation: Standard deviation of the losses of the images.
        opens_at: Epoch before which only the head trains; None for none.
    """
    rows = [
        create_row(
            epoch,
            val=(loss, 0.9),
            train=(loss, 0.9),
            groups=("head",) if opens_at is not None and epoch < opens_at else ("head", "layer4"),
        )
        for epoch, loss in enumerate(losses, start=1)
    ]
    run = create_run(*rows)
    assert run.validation is not None
    return replace(run, validation=replace(run.validation, loss_deviation=deviation))


def _create_low_rate(change: float, train: float) -> RunEvidence:
    return create_run(
        *(create_row(e, val=(0.68, train), train=(0.68, train), change=change) for e in (1, 2))
    )


def _create_accuracies(*values: float, train: float = 0.99, num_val: int = 200) -> RunEvidence:
    run = create_run(
        *(
            create_row(epoch, val=(1 - value, value), train=(1 - train, train))
            for epoch, value in enumerate(values, start=1)
        )
    )
    return replace(run, data=replace(run.data, num_val=num_val, num_train_eval=num_val))


def _create_frozen(
    train: float, *, groups: tuple[str, ...], stages: StageEvidence | None = None
) -> RunEvidence:
    run = create_run(
        *(create_row(e, val=(0.6, train), train=(0.6, train), groups=groups) for e in (1, 2)),
        stages=stages,
    )
    return run


def _create_stages(difference: float, error: float) -> StageEvidence:
    return StageEvidence(
        last="layer4",
        last_accuracy=0.8,
        earlier="layer3",
        earlier_accuracy=0.9,
        loss_difference=difference,
        standard_error=error,
    )


def _create_probe_only(stages: StageEvidence) -> RunEvidence:
    probe = create_row(0, val=(0.5, 0.8), train=(0.1, 0.99))
    run = create_good_run(stages=stages, settings={**SETTINGS, "unfreeze.name": "linear_probe"})
    return replace(run, curves=replace(run.curves, probe=probe, epochs=(), best_epoch=0))


def _create_overfit(
    lowest: float, last: float, *, calibrated: tuple[float, float], train: tuple[float, float]
) -> RunEvidence:
    return create_run(
        create_row(1, val=(0.6, 0.8), train=(0.5, 0.85)),
        create_row(2, val=(lowest, 0.85), calibrated=calibrated[0], train=(train[0], 0.95)),
        create_row(3, val=(last, 0.85), calibrated=calibrated[1], train=(train[1], 0.99)),
    )


def _create_gap(train: float, val: float, num_images: int, counts: tuple[int, ...]) -> RunEvidence:
    run = create_run(
        create_row(1, val=(0.5, val), train=(0.1, train)),
        create_row(2, val=(0.5, val), train=(0.1, train)),
    )
    data = replace(
        run.data,
        num_val=num_images,
        num_train_eval=num_images,
        train_counts=counts,
        num_train=sum(counts),
        classes=tuple(f"class{k}" for k in range(len(counts))),
    )
    return replace(run, data=data)


def _create_no_gain(*, best: int) -> RunEvidence:
    return create_run(
        create_row(0, val=(0.3, 0.9), train=(0.2, 0.95)),
        create_row(1, val=(0.31, 0.89), train=(0.2, 0.95)),
        best=best,
    )


def _create_val(supports: list[int], correct: list[int], **changes: Any) -> RunEvidence:
    settings = changes.pop("settings", SETTINGS)
    is_multi_label = changes.pop("is_multi_label", False)
    validation = create_validation(supports=supports, correct=correct, **changes)
    run = create_good_run(validation=validation, settings=settings)
    return replace(run, data=replace(run.data, is_multi_label=is_multi_label))


def _create_leaks(num_leaked: int) -> RunEvidence:
    run = create_good_run()
    data = replace(run.data, num_leaked=num_leaked, leaked_example="val/a.jpg")
    return replace(run, data=data)


def _create_conflicts(count: int) -> RunEvidence:
    run = create_good_run()
    example = ("train/x/a.jpg", "train/y/b.jpg")
    return replace(run, data=replace(run.data, num_conflicting=count, conflicting_example=example))


def _create_improbable(count: int | None, expected: float | None) -> RunEvidence:
    run = create_good_run()
    assert run.validation is not None
    error = LabelError(path="a.jpg", label="x", predicted_label="y", label_probability=0.01)
    return replace(
        run,
        validation=replace(run.validation, num_improbable=count, num_improbable_expected=expected),
        data=replace(run.data, label_errors=(error,)),
    )


def _create_layers(
    before: dict[str, float], after: dict[str, float], units: int = 512
) -> RunEvidence:
    return create_good_run(
        network=NetworkEvidence(
            before=(LayerHealth(name="layer4", units=units, **before),),
            after=(LayerHealth(name="layer4", units=units, **after),),
        )
    )


def _create_weights(changes: list[float] | None, gradients: list[float] | None) -> RunEvidence:
    groups = ("layer3", "layer3", "layer4", "layer4", "head")
    return create_good_run(
        network=NetworkEvidence(
            weights=tuple(
                LayerWeights(
                    name=f"{group}.{k}",
                    group=group,
                    relative_change=None if changes is None else changes[k],
                    relative_gradient=None if gradients is None else gradients[k],
                )
                for k, group in enumerate(groups)
            )
        )
    )


_LOST = {"dead": 0.0, "saturated": 0.0, "correlated_pairs": 0.05}

FIRING: dict[str, list[RunEvidence]] = {
    "exploded_loss": [
        _create_explosion(9.0, 9.0),
        _create_explosion(1e6, 0.5),
        _create_explosion(float("nan"), float("nan")),
        _create_explosion(float("inf"), 0.6),
    ],
    "fall_from_probe": [
        _create_fall(0.5, 0.5, train=0.5, num_val=150),
        _create_fall(0.7, 0.72, train=0.75, num_val=400),
        _create_fall(0.5, 0.9, train=0.6, num_val=100),
        _create_fall(0.5, 0.5, train=None, num_val=100),
    ],
    "unsteady_loss": [
        _create_losses(0.3, 0.6, 0.3, 0.6, 0.3),
        _create_losses(0.2, 0.5, 0.9, 0.4, deviation=1.0),
    ],
    "rate_too_low": [_create_low_rate(1e-5, 0.5), _create_low_rate(4e-4, 0.8)],
    "phase_jump": [
        _create_losses(0.3, 0.28, 0.5, 0.29, opens_at=3),
        _create_losses(0.3, 0.28, 0.9, 0.8, opens_at=3),
    ],
    "leaks": [_create_leaks(1), _create_leaks(6), _create_leaks(80)],
    "frozen_too_deep": [
        _create_frozen(0.6, groups=("head",)),
        _create_frozen(0.99, groups=("head",), stages=_create_stages(0.2, 0.05)),
        _create_probe_only(_create_stages(0.3, 0.02)),
    ],
    "no_better_than_guessing": [
        _create_val([100, 100], [55, 40]),
        _create_val([180, 20], [180, 0]),
    ],
    "underfitting": [
        _create_accuracies(0.6, 0.62, train=0.65),
        _create_accuracies(0.5, 0.5, train=0.5, num_val=60),
    ],
    "still_improving": [
        _create_accuracies(0.3, 0.6, 0.85),
        _create_accuracies(0.4, 0.6, num_val=150),
    ],
    "overfitting": [
        _create_overfit(0.4, 0.9, calibrated=(0.4, 0.8), train=(0.2, 0.05)),
        _create_overfit(0.4, 0.6, calibrated=(0.4, 0.41), train=(0.2, 0.2)),
    ],
    "generalization_gap": [
        _create_gap(1.0, 0.5, 120, (4,) * 6),
        _create_gap(1.0, 0.85, 150, (120, 120)),
    ],
    "small_validation": [_create_val([6, 6], [5, 6]), _create_val([30, 30], [22, 21])],
    "easier_validation": [
        _create_accuracies(0.95, 0.97, train=0.8),
        _create_accuracies(0.8, 0.8, train=0.6, num_val=300),
    ],
    "label_errors": [_create_improbable(9, 2.0), _create_improbable(4, 0.3)],
    "conflicting_duplicates": [_create_conflicts(2), _create_conflicts(40)],
    "class_never_predicted": [
        _create_val([180, 20], [180, 0]),
        _create_val([90, 90, 15], [85, 90, 0], train=[400, 400, 20]),
        _create_val([100, 30], [100, 0], is_multi_label=True),
    ],
    "weak_rare_class": [
        _create_val([100, 100, 20], [96, 95, 8], train=[500, 500, 60]),
        _create_val(
            [100, 100, 20],
            [96, 95, 8],
            train=[500, 500, 60],
            settings={**SETTINGS, "imbalance.strategy": "post_hoc"},
        ),
    ],
    "dead_units": [
        _create_layers(_LOST, {**_LOST, "dead": 0.3}),
        _create_layers({**_LOST, "dead": 0.2}, {**_LOST, "dead": 0.9}, units=64),
    ],
    "saturated_units": [_create_layers(_LOST, {**_LOST, "saturated": 0.4})],
    "correlated_maps": [_create_layers(_LOST, {**_LOST, "correlated_pairs": 0.7})],
    "unmoved_layers": [_create_weights([0.0, 1e-3, 1e-3, 1e-2, 1e-2], None)],
    "vanishing_gradients": [_create_weights(None, [1e-9, 1e-3, 1e-3, 1e-2, 1e-2])],
    "exploding_gradients": [_create_weights(None, [1e-3, 1e-3, 1e-3, 1e-2, 1e3])],
    "no_gain": [_create_no_gain(best=0)],
    "confused_pair": [_create_val([100, 100, 100], [99, 70, 98])],
}

SILENT: dict[str, list[RunEvidence]] = {
    "exploded_loss": [_create_explosion(2.0, 1.0), _create_explosion(6.9, 6.9)],
    "fall_from_probe": [
        _create_fall(0.85, 0.9, train=0.9, num_val=150),
        _create_fall(0.5, 0.5, train=0.5, num_val=8),
        _create_fall(0.7, 0.7, train=0.99, num_val=400),  # overfitting is another fault
    ],
    "unsteady_loss": [
        _create_losses(0.3, 0.35, 0.3, 0.35, 0.3),
        _create_losses(0.3, 0.6, 0.3, 0.3, 0.3),
    ],
    "rate_too_low": [_create_low_rate(1e-5, 1.0), _create_low_rate(1e-2, 0.5)],
    "phase_jump": [
        _create_losses(0.3, 0.28, 0.3, 0.29, opens_at=3),
        _create_losses(0.3, 0.28, 0.9, 0.8),
    ],
    "leaks": [_create_leaks(0)],
    "frozen_too_deep": [
        _create_frozen(0.6, groups=("head", "layer4", "layer3")),
        _create_frozen(0.95, groups=("head",)),
        _create_frozen(0.99, groups=("head",), stages=_create_stages(0.05, 0.05)),
        _create_frozen(0.99, groups=("head", "layer4"), stages=_create_stages(0.3, 0.05)),
        _create_probe_only(_create_stages(-0.1, 0.02)),
    ],
    "no_better_than_guessing": [_create_val([100, 100], [90, 90]), _create_val([1], [1])],
    "underfitting": [
        _create_accuracies(0.8, 0.8, train=0.97),
        _create_accuracies(0.8, 0.8, train=0.8, num_val=12),
    ],
    "still_improving": [
        _create_accuracies(0.6, 0.85, 0.88),
        _create_accuracies(0.3, 0.6, num_val=10),
    ],
    "overfitting": [
        _create_overfit(0.4, 0.45, calibrated=(0.4, 0.45), train=(0.2, 0.1)),
        _create_overfit(0.4, 0.9, calibrated=(0.4, 0.9), train=(0.2, 0.5)),
    ],
    "generalization_gap": [
        _create_gap(0.95, 0.93, 150, (120, 120)),
        _create_gap(1.0, 0.85, 10, (120, 120)),
    ],
    "small_validation": [_create_val([50, 50], [45, 45]), _create_val([50, 50], [25, 25])],
    "easier_validation": [
        _create_accuracies(0.9, 0.9, train=0.88),
        _create_accuracies(0.95, 0.97, train=0.8, num_val=20),
    ],
    "label_errors": [
        _create_improbable(3, 2.0),
        _create_improbable(0, 0.1),
        _create_improbable(None, None),
    ],
    "conflicting_duplicates": [_create_conflicts(0)],
    "class_never_predicted": [
        _create_val([180, 2], [170, 0]),
        _create_val([100, 100], [90, 1]),
    ],
    "weak_rare_class": [
        _create_val([100, 100, 20], [96, 95, 18], train=[500, 500, 60]),
        _create_val([100, 100, 20], [96, 95, 8], train=[500, 500, 500]),
    ],
    "dead_units": [
        _create_layers({**_LOST, "dead": 0.5}, {**_LOST, "dead": 0.5}),
        _create_layers(_LOST, {**_LOST, "dead": 0.2}, units=10),
        _create_layers(_LOST, {}),
    ],
    "saturated_units": [_create_layers({**_LOST, "saturated": 0.6}, {**_LOST, "saturated": 0.6})],
    "correlated_maps": [
        _create_layers({**_LOST, "correlated_pairs": 0.6}, {**_LOST, "correlated_pairs": 0.7})
    ],
    "unmoved_layers": [
        _create_weights([1e-4, 1e-3, 1e-3, 1e-2, 1e-2], None),
        _create_weights([0.0] * 5, None),  # the probe was kept
    ],
    "vanishing_gradients": [_create_weights(None, [1e-5, 1e-3, 1e-3, 1e-2, 1e-2])],
    "exploding_gradients": [_create_weights(None, [1e-3, 1e-3, 1e-3, 1e-2, 1e-1])],
    "no_gain": [_create_no_gain(best=1)],
    "confused_pair": [
        _create_val([100, 100, 100], [95, 95, 95]),
        _create_val([100, 100], [70, 98]),
    ],
}
