"""Made runs with one fault each, or nearly so."""

from dataclasses import replace
from typing import Any

from finetune.diagnosis.divergence_error import Divergence
from finetune.diagnosis.evidence import (
    ClassRow,
    LabelError,
    LayerHealth,
    LayerWeights,
    NetworkEvidence,
    RunEvidence,
    StageEvidence,
)
from finetune.diagnosis.label_noise import LabelNoise
from tests.diagnosis.made_runs import (
    SETTINGS,
    create_good_run,
    create_row,
    create_run,
    create_validation,
)


def create_fall(lowest: float, last: float, *, train: float | None, num_val: int) -> RunEvidence:
    """Create a run whose accuracy falls from 90% of a probe."""
    run = create_run(
        create_row(0, val=(0.3, 0.9), train=(0.2, 0.95)),
        create_row(1, val=(0.7, lowest), train=None if train is None else (0.7, train)),
        create_row(2, val=(0.7, last), train=None if train is None else (0.7, train)),
    )
    return replace(run, data=replace(run.data, num_val=num_val, num_train_eval=num_val))


def create_divergence(*, epoch: int = 2, step: int | None = 3, **changes: Any) -> RunEvidence:
    """Create a run of a probe and an epoch that diverged in the next one."""
    run = create_run(
        create_row(0, val=(0.3, 0.9), train=(0.2, 0.95)),
        *([] if epoch == 1 else [create_row(1, val=(9.0, 0.5), train=(9.0, 0.5))]),
        best=0,
    )
    divergence = Divergence(
        what="the training loss is nan",
        epoch=epoch,
        step=step,
        steps_per_epoch=8,
        is_first=(epoch, step) == (1, 1),
        learning_rates={"head": 0.5, "layer4": 0.1},
    )
    settings = {**run.settings, **changes}
    return replace(run, validation=None, divergence=divergence, settings=settings)


def create_explosion(first: float, last: float) -> RunEvidence:
    """Create a run with the given losses after a probe."""
    return create_run(
        create_row(0, val=(0.3, 0.9), train=(0.2, 0.95)),
        create_row(1, val=(first, 0.5), train=(first, 0.5)),
        create_row(2, val=(last, 0.5), train=(last, 0.5)),
    )


def create_losses(
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


def create_low_rate(change: float, train: float) -> RunEvidence:
    """Create a run whose weights change by so much in each of two epochs."""
    return create_run(
        *(create_row(e, val=(0.68, train), train=(0.68, train), change=change) for e in (1, 2))
    )


def create_accuracies(*values: float, train: float = 0.99, num_val: int = 200) -> RunEvidence:
    """Create a run whose validation accuracy is given by epoch."""
    run = create_run(
        *(
            create_row(epoch, val=(1 - value, value), train=(1 - train, train))
            for epoch, value in enumerate(values, start=1)
        )
    )
    return replace(run, data=replace(run.data, num_val=num_val, num_train_eval=num_val))


def create_frozen(
    train: float, *, groups: tuple[str, ...], stages: StageEvidence | None = None
) -> RunEvidence:
    """Create a run in which only some layer groups train."""
    return create_run(
        *(create_row(e, val=(0.6, train), train=(0.6, train), groups=groups) for e in (1, 2)),
        stages=stages,
    )


def create_stages(difference: float, error: float) -> StageEvidence:
    """Create heads of which the earlier one has a lower loss by ``difference``."""
    return StageEvidence(
        last="layer4",
        last_accuracy=0.8,
        earlier="layer3",
        earlier_accuracy=0.9,
        loss_difference=difference,
        standard_error=error,
    )


def create_probe_only(stages: StageEvidence) -> RunEvidence:
    """Create a run that is only a linear probe."""
    probe = create_row(0, val=(0.5, 0.8), train=(0.1, 0.99))
    run = create_good_run(stages=stages, settings={**SETTINGS, "unfreeze.name": "linear_probe"})
    return replace(run, curves=replace(run.curves, probe=probe, epochs=(), best_epoch=0))


def create_overfit(
    lowest: float, last: float, *, calibrated: tuple[float, float], train: tuple[float, float]
) -> RunEvidence:
    """Create a run whose lowest and last validation losses are given, of three epochs."""
    return create_run(
        create_row(1, val=(0.6, 0.8), train=(0.5, 0.85)),
        create_row(2, val=(lowest, 0.85), calibrated=calibrated[0], train=(train[0], 0.95)),
        create_row(3, val=(last, 0.85), calibrated=calibrated[1], train=(train[1], 0.99)),
    )


def create_gap(train: float, val: float, num_images: int, counts: tuple[int, ...]) -> RunEvidence:
    """Create a run with accuracies on training and validation images."""
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


def create_no_gain(*, best: int) -> RunEvidence:
    """Create a run whose epochs are no better than its probe."""
    return create_run(
        create_row(0, val=(0.3, 0.9), train=(0.2, 0.95)),
        create_row(1, val=(0.31, 0.89), train=(0.2, 0.95)),
        best=best,
    )


def create_val(supports: list[int], correct: list[int], **changes: Any) -> RunEvidence:
    """Create a run whose final model has the given hits of each class."""
    settings = changes.pop("settings", SETTINGS)
    is_multi_label = changes.pop("is_multi_label", False)
    validation = create_validation(supports=supports, correct=correct, **changes)
    run = create_good_run(validation=validation, settings=settings)
    return replace(run, data=replace(run.data, is_multi_label=is_multi_label))


def create_leaks(num_leaked: int) -> RunEvidence:
    """Create a run with leaked images among its 200 validation images."""
    run = create_good_run()
    data = replace(run.data, num_leaked=num_leaked, leaked_example="val/a.jpg")
    return replace(run, data=data)


def create_conflicts(count: int) -> RunEvidence:
    """Create a run of 400 images of which some have a duplicate of another class."""
    run = create_good_run()
    example = ("train/x/a.jpg", "train/y/b.jpg")
    return replace(run, data=replace(run.data, num_conflicting=count, conflicting_example=example))


def create_noise(
    fraction: float,
    gain: float,
    *,
    correct: int = 180,
    is_confirmed: bool = False,
    is_listed: bool = True,
) -> RunEvidence:
    """Create a run with an estimate of the fraction of wrong labels of 200 images."""
    run = create_good_run()
    assert run.validation is not None
    error = LabelError(path="a.jpg", label="x", predicted_label="y", label_probability=0.01)
    return replace(
        run,
        validation=replace(
            run.validation,
            num_correct=correct,
            label_noise=LabelNoise(fraction=fraction, log_likelihood_gain=gain, num_images=200),
            mistakes={"a.jpg": "y" if is_confirmed else "z", "b.jpg": "x"},
        ),
        data=replace(run.data, label_errors=(error,) if is_listed else ()),
    )


def create_layers(
    before: dict[str, float], after: dict[str, float], units: int = 512
) -> RunEvidence:
    """Create a run with the statistics of a layer before and after it."""
    return create_good_run(
        network=NetworkEvidence(
            before=(LayerHealth(name="layer4", units=units, **before),),
            after=(LayerHealth(name="layer4", units=units, **after),),
        )
    )


def create_weights(
    changes: list[float | None] | None, gradients: list[float] | None
) -> RunEvidence:
    """Create a run with changes and gradients of five layers."""
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


LOST = {"dead": 0.0, "saturated": 0.0, "correlated_pairs": 0.05}


def create_label_scores(
    train: float,
    val: float,
    *,
    num_images: int = 200,
    gain: float = 0.0,
    val_support: int | None = None,
    **changes: Any,
) -> RunEvidence:
    """Create a run on images with three labels, whose mean average precisions are given.

    Args:
        train: That of the training images.
        val: That of the validation images.
        num_images: Number of both.
        gain: Gain in log likelihood by wrong values of the first label.
        val_support: Validation images with each label; None for a quarter, as in training.
        changes: Rows of further settings of the run.
    """
    scores = {"loss": 0.3, "mean_average_precision": train}
    rows = [
        replace(
            create_row(epoch, val=(0.3, 0.5), **changes),
            train_eval=scores,
            val={"loss": 0.3, "mean_average_precision": val, "subset_accuracy": 0.5},
        )
        for epoch in (1, 2)
    ]
    run = create_run(*rows)
    assert run.validation is not None
    right, wrong = (
        LabelNoise(fraction=0.05 if one else 0.0, log_likelihood_gain=one, num_images=num_images)
        for one in (0.0, gain)
    )
    support = num_images // 4
    val_support = support if val_support is None else val_support
    labels = tuple(
        ClassRow(
            name=name,
            train_images=support,
            support=val_support,
            num_predicted=val_support,
            num_correct=round(val * val_support),
            average_precision=val,
            noise=wrong if name == "red" else right,
        )
        for name in ("red", "green", "blue")
    )
    validation = replace(
        run.validation,
        num_images=num_images,
        num_correct=None,
        metrics={"mean_average_precision": val},
        classes=labels,
        confusion=(),
        label_noise=None,
        mistakes={"a.jpg": "red", "b.jpg": "blue"},
    )
    data = replace(
        run.data,
        classes=("red", "green", "blue"),
        train_counts=(support,) * 3,
        num_train=num_images,
        num_val=num_images,
        num_train_eval=num_images,
        is_multi_label=True,
    )
    return replace(run, validation=validation, data=data)
