"""Facts of a run folder or a bundle for its report."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from finetune.bundle.model_card import find_bundle, read_card_json
from finetune.bundle.renamed_facts import rename_facts
from finetune.commands.diagnosis.fit_diagnosis import build_diagnosis, read_diagnosis
from finetune.commands.early_checks.named_runs import explain_other_folder
from finetune.commands.measurement.measured import read_measured
from finetune.commands.report.run_files import (
    read_audit,
    read_json,
    read_out_of_fold,
    read_rejected,
    read_rows,
    read_split_predictions,
)
from finetune.commands.report.run_session import read_sessions
from finetune.commands.stored_run import read_stored_config, read_stored_manifest
from finetune.config.load import get_explicit_values
from finetune.config.schema import Config
from finetune.data.manifest import Manifest
from finetune.errors import FinetuneError, RunFolderError
from finetune.report.run_facts import RunFacts, SplitPredictions
from finetune.report.sections.headline import OUT_OF_FOLD
from finetune.system.run_folder import RunFolder, is_run
from finetune.types import Split


def read_facts(path: Path) -> RunFacts:
    """Return the facts of a run folder, a cross-validation or a bundle.

    Raises:
        RunFolderError: The path is none of them, or its config or model card is damaged.
        ConfigError: The config of the run is damaged.
        DataError: The manifest of the run is damaged.
    """
    if is_run(path):
        return _read_run(RunFolder(path), path)
    folder = find_bundle(path)
    if folder is None:
        raise RunFolderError(explain_other_folder(path))
    card = _read_card(folder)
    return RunFacts(
        name=path.resolve().name,
        path=str(path),
        card=card,
        classes=tuple(card.get("classes", ())),
        members=_list_members(card),
        input_sizes=_list_input_sizes(folder, card),
    )


def _read_run(run: RunFolder, path: Path) -> RunFacts:
    config = read_stored_config(run)
    manifest = read_stored_manifest(run, config)
    folder = find_bundle(run.path)
    card = {} if folder is None else _read_card(folder)
    splits = [split for split in Split if manifest.get_samples(split)]
    return RunFacts(
        name=_name_run(run),
        path=str(path),
        config=_flatten(config),
        defaults=_flatten(Config()),
        card=card,
        classes=manifest.classes,
        class_counts={split.value: manifest.count_per_class(split) for split in splits},
        num_images={split.value: len(manifest.get_samples(split)) for split in splits},
        rows=read_rows(run.metrics_path),
        measured=_read_measured(run),
        audit=read_audit(run),
        rejected=read_rejected(run),
        findings=_read_findings(run, is_complete=folder is not None),
        network=read_json(run.path / "network.json"),
        predictions=_read_predictions(run, manifest),
        folds=read_json(run.cross_validation_path),
        fold_rows=_read_fold_rows(run),
        members=_list_members(card),
        input_sizes=() if folder is None else _list_input_sizes(folder, card),
        sessions=_read_all_sessions(run),
    )


def _name_run(run: RunFolder) -> str:
    """Return the name of a run: that of its folder, with that of its cross-validation."""
    name, outer = run.path.resolve().name, run.cross_validation_run
    if outer is run:
        return name
    return f"{outer.path.resolve().name}, {f'fold {name}' if name.isdigit() else name}"


def _read_all_sessions(run: RunFolder) -> list[dict[str, Any]]:
    """Return the sessions of a run; of a cross-validation those of its folds and its refit, too."""
    parts = [] if not run.folds_csv_path.is_file() else [*_list_folds(run), run.path / "refit"]
    return [one for folder in [run.path, *parts] for one in read_sessions(RunFolder(folder))]


def _list_folds(run: RunFolder) -> list[Path]:
    """Return the folders of the folds of a cross-validation."""
    folders = [folder for folder in (run.path / "folds").glob("[0-9]*") if folder.name.isdigit()]
    return sorted(folders, key=lambda folder: int(folder.name))


def _flatten(config: Config) -> Mapping[str, Any]:
    """Return every value of a config by dotted key."""
    return get_explicit_values(Config.model_validate(config.model_dump(mode="json")))


def _read_card(folder: Path) -> dict[str, Any]:
    card = read_card_json(folder)
    return {**card, "facts": rename_facts(card.get("facts") or {})}


def _list_members(card: Mapping[str, Any]) -> tuple[tuple[str, float], ...]:
    members = card.get("members") or ()
    return tuple((str(one.get("backbone", "")), float(one.get("weight", 1.0))) for one in members)


def _list_input_sizes(folder: Path, card: Mapping[str, Any]) -> tuple[tuple[int, ...], ...]:
    """Return the input size of the network of a bundle, or of each member of an ensemble."""
    trees = [
        read_json(folder / str(one.get("folder")) / "finetune.json")
        for one in card.get("members") or ()
    ]
    sizes = [((tree or {}).get("spec") or {}).get("input_size") for tree in trees or [card]]
    return tuple(tuple(size) for size in sizes if size)


def _read_measured(run: RunFolder) -> Mapping[str, Any]:
    try:
        return read_measured(run)
    except FinetuneError:
        return {}


def _read_findings(run: RunFolder, *, is_complete: bool) -> list[Mapping[str, Any]] | None:
    """Return the findings on a run; a complete one of an older release is diagnosed now."""
    stored = read_diagnosis(run)
    if stored is not None or not is_complete:
        return stored
    try:
        return build_diagnosis(run)
    except FinetuneError:
        return None


def _read_predictions(run: RunFolder, manifest: Manifest) -> dict[str, SplitPredictions]:
    found = {
        split.value: read_split_predictions(
            run.path / f"{split.value}_predictions.npz", manifest, split
        )
        for split in (Split.VAL, Split.TEST)
    }
    if run.folds_csv_path.is_file():
        found[OUT_OF_FOLD] = read_out_of_fold(run, manifest)
    return {split: predictions for split, predictions in found.items() if predictions is not None}


def _read_fold_rows(run: RunFolder) -> dict[int, Any]:
    rows = {int(folder.name): read_rows(folder / "metrics.csv") for folder in _list_folds(run)}
    return {number: one for number, one in rows.items() if one}
