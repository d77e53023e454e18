"""Evidence of a run from its folder; what is missing or damaged is left out."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from finetune.audit.leakage import find_leaks
from finetune.bundle.model_card import find_bundle, read_card_json
from finetune.bundle.renamed_facts import rename_facts
from finetune.commands.diagnosis.network_evidence import parse_network
from finetune.commands.diagnosis.validation_evidence import (
    build_validation,
    build_validation_of_card,
)
from finetune.commands.measurement.refit_choice import read_refit_choice
from finetune.commands.report.run_files import (
    read_audit,
    read_json,
    read_out_of_fold,
    read_rows,
    read_split_predictions,
)
from finetune.commands.stored_run import read_stored_config, read_stored_manifest
from finetune.config.load import get_explicit_values
from finetune.config.schema import Config
from finetune.data.manifest import Manifest
from finetune.diagnosis.divergence_error import parse_divergence
from finetune.diagnosis.evidence import (
    Curves,
    DataEvidence,
    EpochRow,
    LabelError,
    RunEvidence,
    StageEvidence,
    ValidationEvidence,
)
from finetune.evaluation.measured_precision import is_half_precision
from finetune.report.kept_weights import find_best_epoch
from finetune.system.run_folder import RunFolder
from finetune.types import Split

_PREFIXES = ("train_eval", "val", "lr", "grad_norm", "weight_change")


def read_evidence(run: RunFolder, *, facts: Mapping[str, Any] | None = None) -> RunEvidence:
    """Return the numbers of a run, a fold or a cross-validation.

    Args:
        run: Run folder; an older one has fewer numbers.
        facts: Facts of the model card; None reads them from the bundle, if there is one.

    Raises:
        ConfigError: The config of the run is damaged.
        DataError: The manifest of the run is damaged.
    """
    config = read_stored_config(run)
    manifest = read_stored_manifest(run, config)
    settings = get_explicit_values(Config.model_validate(config.model_dump(mode="json")))
    if facts is None:
        facts = _read_facts(run)
    rows = [_parse_row(row) for row in read_rows(run.metrics_path) if "epoch" in row]
    validation = _read_validation(run, manifest, facts)
    network = read_json(run.network_path)
    diagnosis = read_json(run.diagnosis_path)
    curves = _build_curves(rows, settings, facts)
    if is_half_precision(settings.get("trainer.precision")):
        curves = _measure_kept_row(curves, validation, settings, facts)
    return RunEvidence(
        curves=curves,
        validation=validation,
        data=_read_data(run, manifest, rows, validation),
        network=parse_network(network) if isinstance(network, Mapping) else None,
        stages=_parse_stages(read_json(run.stages_path)),
        settings=settings,
        measured=_read_measured(run),
        divergence=parse_divergence(diagnosis.get("divergence")) if diagnosis else None,
    )


def _read_measured(run: RunFolder) -> frozenset[str]:
    """Return the keys whose values were measured; the rate of a refit by its folds, or given."""
    measured = read_json(run.measured_path)
    keys = frozenset(measured.get("settings", ()) if isinstance(measured, dict) else ())
    return keys if read_refit_choice(run) is None else keys | {"optim.lr"}


def _read_facts(run: RunFolder) -> dict[str, Any]:
    folder = find_bundle(run.path)
    return {} if folder is None else rename_facts(read_card_json(folder).get("facts") or {})


def _parse_row(row: Mapping[str, float]) -> EpochRow:
    """Return a row of ``metrics.csv`` with its columns by prefix."""
    parts: dict[str, dict[str, float]] = {prefix: {} for prefix in _PREFIXES}
    for column, value in row.items():
        prefix, _, name = column.partition("/")
        if name and prefix in parts:
            parts[prefix][name] = value
    return EpochRow(
        epoch=int(row["epoch"]),
        train_loss=row.get("train/loss"),
        train_eval=parts["train_eval"],
        val=parts["val"],
        learning_rates=parts["lr"],
        grad_norms=parts["grad_norm"],
        weight_changes=parts["weight_change"],
    )


def _build_curves(
    rows: Sequence[EpochRow], settings: Mapping[str, Any], facts: Mapping[str, Any]
) -> Curves:
    # a run of only the probe has its row as epoch 1, in which nothing has a learning rate
    is_probe_only = settings.get("unfreeze.name") == "linear_probe" and not any(
        row.learning_rates for row in rows
    )
    probe = next((row for row in rows if row.epoch == 0 or is_probe_only), None)
    epochs = tuple(row for row in rows if row is not probe)
    interpolation = facts.get("interpolation") or {}
    fraction = interpolation.get("fraction")
    monitor = settings.get("checkpoint.monitor")
    if monitor in (None, "auto"):
        monitor = settings.get("trainer.monitor")
    columns = [
        {"epoch": float(row.epoch), **{f"val/{name}": value for name, value in row.val.items()}}
        for row in rows
    ]
    best = find_best_epoch(columns, "accuracy" if monitor in (None, "auto") else str(monitor))
    if is_probe_only or fraction == 0:
        best = 0
    elif fraction is not None and epochs:
        best = epochs[-1].epoch
    if is_probe_only and probe is not None:
        probe = EpochRow(epoch=0, val=probe.val, train_eval=probe.train_eval)
    planned = settings.get("trainer.epochs")
    return Curves(
        probe=probe,
        epochs=epochs,
        best_epoch=best,
        num_planned_epochs=planned if isinstance(planned, int) else None,
        is_stopped_early=facts.get("early_stop") is not None,
        is_mixed=fraction is not None and 0 < fraction < 1,
    )


def _measure_kept_row(
    curves: Curves,
    validation: ValidationEvidence | None,
    settings: Mapping[str, Any],
    facts: Mapping[str, Any],
) -> Curves:
    """Return curves whose row of the kept model has the accuracy that was measured in 32 bits.

    Epochs of a run in half precision are measured in it, and the kept model in 32 bits: one model
    has one accuracy in the diagnosis. Rows of other weights than those that are kept stay.
    """
    row = curves.best_row
    evaluation = (facts.get("evaluations") or {}).get(Split.VAL.value) or {}
    is_changed = (
        curves.is_mixed
        or settings.get("imbalance.head_rebalancing") in ("crt", "tau_norm")
        or bool((evaluation.get("prior") or {}).get("adjusted"))
    )
    if row is None or validation is None or validation.num_correct is None or is_changed:
        return curves
    accuracy = validation.num_correct / validation.num_images
    measured = replace(row, val={**row.val, "accuracy": accuracy})
    return replace(
        curves,
        probe=measured if row is curves.probe else curves.probe,
        epochs=tuple(measured if one is row else one for one in curves.epochs),
    )


def _read_validation(
    run: RunFolder, manifest: Manifest, facts: Mapping[str, Any]
) -> ValidationEvidence | None:
    if run.folds_csv_path.is_file():
        name, predictions = "out_of_fold", read_out_of_fold(run, manifest)
    else:
        name = Split.VAL.value
        path = run.get_predictions_path(Split.VAL)
        predictions = read_split_predictions(path, manifest, Split.VAL)
    metrics = (facts.get("metrics") or {}).get(name) or {}
    details = (facts.get("evaluations") or {}).get(name) or {}
    clean = (facts.get("metrics") or {}).get(f"{name}_without_leaks") or {}
    if predictions is None:
        return build_validation_of_card(metrics, details, clean)
    is_adjusted = bool((details.get("prior") or {}).get("adjusted"))
    return build_validation(
        predictions,
        manifest,
        metrics=metrics,
        details=details,
        accuracy_without_leaks=clean.get("accuracy"),
        is_adjusted=is_adjusted,
    )


def _read_data(
    run: RunFolder,
    manifest: Manifest,
    rows: Sequence[EpochRow],
    validation: ValidationEvidence | None,
) -> DataEvidence:
    num_train = len(manifest.get_samples(Split.TRAIN))
    val_paths = {sample.path for sample in manifest.get_samples(Split.VAL)}
    num_val = len(val_paths)
    if not num_val and validation is not None:
        num_val = validation.num_images
    leaked = [path for path in find_leaks(manifest) if path in val_paths]
    audit = read_audit(run) or {}
    conflicts = [
        group for group in audit.get("duplicates") or () if "classes" in group.get("conflicts", ())
    ]
    errors = audit.get("label_errors")
    has_sample = any(row.train_eval for row in rows)
    return DataEvidence(
        classes=tuple(manifest.classes),
        train_counts=tuple(manifest.count_per_class(Split.TRAIN)),
        num_train=num_train,
        num_val=num_val,
        num_train_eval=min(num_train, num_val) if has_sample else 0,
        num_leaked=len(leaked),
        leaked_example=leaked[0] if leaked else "",
        num_conflicting=sum(len(group["paths"]) for group in conflicts),
        conflicting_example=_find_contrast(conflicts[0]) if conflicts else (),
        label_errors=None
        if errors is None
        else tuple(
            LabelError(
                path=error["path"],
                label=error["label"],
                predicted_label=error["predicted_label"],
                label_probability=float(error["label_probability"]),
            )
            for error in errors
        ),
        num_checked=int((audit.get("label_check") or {}).get("num_images", 0)),
        check_accuracy=(audit.get("label_check") or {}).get("accuracy"),
        is_multi_label=manifest.is_multi_label,
    )


def _find_contrast(group: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the paths of two images of a group with different labels."""
    pairs = list(zip(group["paths"], group["labels"], strict=True))
    first, label = pairs[0]
    other = next((path for path, one in pairs if one != label), "")
    return (first, other)


def _parse_stages(tree: Any) -> StageEvidence | None:
    """Return the heads on the last stage and on the best earlier one; None without them."""
    if not isinstance(tree, Mapping):
        return None
    scores = {one["name"]: one for one in tree.get("scores") or () if "name" in one}
    earlier = scores.get(tree.get("best_earlier", ""))
    last = next((one for one in scores.values() if one.get("depth") == 1), None)
    error = tree.get("loss_difference_standard_error")
    if earlier is None or last is None or error is None:
        return None
    return StageEvidence(
        last=last["name"],
        last_accuracy=float(last["cross_validated_accuracy"]),
        earlier=earlier["name"],
        earlier_accuracy=float(earlier["cross_validated_accuracy"]),
        loss_difference=float(tree["loss_difference"]),
        standard_error=float(error),
    )
