"""Evidence of made runs for the rules: a good one, and changes of it."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from finetune.diagnosis.evidence import (
    ClassRow,
    Curves,
    DataEvidence,
    EpochRow,
    RunEvidence,
    ValidationEvidence,
)
from finetune.diagnosis.label_noise import LabelNoise

GROUPS = ("head", "layer4", "layer3")

SETTINGS: Mapping[str, Any] = {
    "optim.lr": 0.001,
    "optim.feature_change": 1.0,
    "optim.backbone_lr_scale": 1.0,
    "augment.name": "medium",
    "augment.mixup": 0.0,
    "imbalance.strategy": "none",
    "loss.name": "cross_entropy",
    "loss.label_smoothing": 0.1,
    "unfreeze.name": "all",
    "trainer.epochs": 5,
    "checkpoint.monitor": "calibrated_loss",
}


def create_row(
    epoch: int,
    *,
    val: tuple[float, float],
    train: tuple[float, float] | None = None,
    calibrated: float | None = None,
    groups: Sequence[str] = GROUPS,
    change: float = 0.01,
) -> EpochRow:
    """Create the row of an epoch.

    Args:
        epoch: Epoch; 0 is the probe, without rates.
        val: Loss and accuracy of the validation images.
        train: Those of the measured training images; None for an older run.
        calibrated: Calibrated loss of the validation images; None for the loss.
        groups: Layer groups that train.
        change: Relative change of their weights.
    """
    has_rates = epoch > 0
    return EpochRow(
        epoch=epoch,
        train_loss=0.5,
        train_eval={} if train is None else {"loss": train[0], "accuracy": train[1]},
        val={
            "loss": val[0],
            "accuracy": val[1],
            "calibrated_loss": val[0] if calibrated is None else calibrated,
        },
        learning_rates={g: 0.001 if g in groups else 0.0 for g in GROUPS} if has_rates else {},
        grad_norms=dict.fromkeys(groups, 1.0) if has_rates else {},
        weight_changes={g: change if g in groups else 0.0 for g in GROUPS} if has_rates else {},
    )


def create_classes(
    *, supports: Sequence[int], correct: Sequence[int], train: Sequence[int] | None = None
) -> tuple[ClassRow, ...]:
    """Create classes whose wrong images are predicted as the next class."""
    wrong = [support - hits for support, hits in zip(supports, correct, strict=True)]
    return tuple(
        ClassRow(
            name=f"class{k}",
            train_images=100 if train is None else train[k],
            support=supports[k],
            num_predicted=correct[k] + wrong[k - 1],
            num_correct=correct[k],
        )
        for k in range(len(supports))
    )


def create_validation(
    *,
    supports: Sequence[int],
    correct: Sequence[int],
    train: Sequence[int] | None = None,
    **changes: Any,
) -> ValidationEvidence:
    """Create the evidence of the final model on validation images."""
    count = len(supports)
    confusion = [[0] * count for _ in range(count)]
    for k in range(count):
        confusion[k][k] = correct[k]
        confusion[k][(k + 1) % count] += supports[k] - correct[k]
    base = ValidationEvidence(
        num_images=sum(supports),
        num_correct=sum(correct),
        metrics={"loss": 0.2, "accuracy": sum(correct) / sum(supports)},
        classes=create_classes(supports=supports, correct=correct, train=train),
        confusion=tuple(map(tuple, confusion)),
        loss_deviation=0.5,
        label_noise=LabelNoise(fraction=0.0, log_likelihood_gain=0.0, num_images=sum(supports)),
    )
    return replace(base, **changes)


def create_good_run(**changes: Any) -> RunEvidence:
    """Create the evidence of a run that nothing is wrong with, changed in some fields."""
    epochs = (
        create_row(1, val=(0.30, 0.90), train=(0.25, 0.92)),
        create_row(2, val=(0.25, 0.92), train=(0.20, 0.94)),
        create_row(3, val=(0.22, 0.93), train=(0.17, 0.95)),
        create_row(4, val=(0.20, 0.935), train=(0.15, 0.96)),
        create_row(5, val=(0.20, 0.935), train=(0.14, 0.96)),
    )
    base = RunEvidence(
        curves=Curves(
            probe=create_row(0, val=(0.35, 0.88), train=(0.30, 0.90)),
            epochs=epochs,
            best_epoch=5,
            num_planned_epochs=5,
        ),
        validation=create_validation(supports=[100, 100], correct=[94, 93]),
        data=DataEvidence(
            classes=("class0", "class1"),
            train_counts=(100, 100),
            num_train=200,
            num_val=200,
            num_train_eval=200,
            label_errors=(),
        ),
        settings=SETTINGS,
    )
    return replace(base, **changes)


def create_run(*rows: EpochRow, best: int | None = None, **changes: Any) -> RunEvidence:
    """Create the evidence of a run with the given rows; that of epoch 0 is the probe."""
    probe = next((row for row in rows if row.epoch == 0), None)
    epochs = tuple(row for row in rows if row.epoch)
    curves = Curves(
        probe=probe,
        epochs=epochs,
        best_epoch=epochs[-1].epoch if best is None else best,
        num_planned_epochs=len(epochs),
    )
    return create_good_run(curves=curves, **changes)
