"""Plan of a study: its images, its search space and its settings, before anything is written."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from finetune.builders import Training, build_training
from finetune.commands.fit.prepare import check_new_run, load_run_data
from finetune.commands.measurement.monitor_check import check_some_label
from finetune.commands.prepare_data import RunData, build_table_options, resolve_data_path
from finetune.commands.tune.hold_out import (
    choose_hold_out,
    describe_hold_out,
    halve_validation,
    remove_hold_out,
)
from finetune.commands.tune.space.default_space import build_default_space, find_default_value
from finetune.commands.tune.space.label_space import check_choices, choose_shared_monitor
from finetune.commands.tune.space.search_space import SearchDimension, format_value
from finetune.commands.tune.study_folder import StudySettings
from finetune.config.auto import get_config_value
from finetune.config.load import diff_from_defaults, replace_values
from finetune.config.schema import Config
from finetune.data.manifest import Manifest
from finetune.data.scan import scan
from finetune.errors import ConfigError, DataError
from finetune.system import run_folder
from finetune.types import Reporter, Split
from finetune.units import format_count

_UNSET = {
    "model.drop_rate": "default of the backbone",
    "optim.head_weight_decay": "as optim.weight_decay",
}
"""What null stands for in the values of a key; that a setting is off, for others."""


@dataclass(frozen=True, slots=True)
class StudyPlan:
    """A study before its folder is created.

    Attributes:
        path: Folder to create.
        settings: Settings that its processes share.
        config: Config of the default trial.
        data: Images with their splits, the hold-out as test split.
        space: Dimensions of the search.
        hold_out: Clause on the images on which the gain is reported.
    """

    path: Path
    settings: StudySettings
    config: Config
    data: RunData
    space: tuple[SearchDimension, ...]
    hold_out: str

    def to_json(self) -> dict[str, Any]:
        """Return JSON values."""
        manifest = self.data.manifest
        return {
            "study_dir": str(self.path),
            "data": self.settings.data,
            "num_classes": len(manifest.classes),
            "is_multi_label": manifest.is_multi_label,
            "num_images": {split.value: len(manifest.get_samples(split)) for split in Split},
            "hold_out": self.hold_out,
            "backbone": self.config.model.backbone,
            "monitor": self.settings.monitor,
            "num_trials": self.settings.num_trials,
            "space": [
                {
                    "key": dimension.key,
                    "values": dimension.to_json(),
                    "description": dimension.describe(),
                    "default": self.settings.defaults[dimension.key],
                }
                for dimension in self.space
            ],
        }


def plan_study(
    config: Config,
    given_space: Sequence[SearchDimension],
    *,
    num_trials: int,
    extends_default: bool,
    reporter: Reporter,
) -> StudyPlan:
    """Return the plan of a study; only caches of the audit are written.

    Args:
        config: Config as given.
        given_space: Dimensions of the user; empty for the default ones.
        num_trials: Number of trials.
        extends_default: Whether the user's dimensions add to the default ones.
        reporter: Receiver of progress and messages.

    Raises:
        FinetuneError: Something that the user can fix.
    """
    data_path = resolve_data_path(config)
    name = run_folder.build_default_name(f"tune-{config.model.backbone}", data_path)
    path = Path(config.output or Path("runs") / name).expanduser()
    run_folder.check_unused(path)
    check_new_run(config)
    scanned = scan(data_path, splits=config.data.split_setting, tables=build_table_options(config))
    given = {sample.split for sample in scanned.samples}
    split_config, origin = choose_hold_out(config, given)
    base, data = load_run_data(split_config, reporter)
    if origin == "half":
        data = replace(data, manifest=halve_validation(data.manifest, seed=config.split_seed))
    _check_hold_out(data.manifest)
    base = replace_values(base, {"output": None})
    monitor = choose_shared_monitor(config, given_space) if data.manifest.is_multi_label else None
    if monitor is not None:
        base = replace_values(base, {"checkpoint.monitor": monitor})
    training = build_training(base, remove_hold_out(data.manifest))
    _check_task(training)
    check_choices(given_space, training.config, training.facts)
    space = _merge_spaces(training, config, given_space, extends_default=extends_default)
    settings = StudySettings(
        num_trials=num_trials,
        seed=config.seed,
        monitor=training.config.checkpoint.monitor,
        judged_by=training.config.trainer.monitor,
        hold_out=origin,
        test_fraction=base.data.test_fraction if origin == "drawn" else 0.0,
        data=str(data_path.resolve()),
        overrides={
            **_collect_overrides(config, base),
            **({} if monitor is None else {"checkpoint.monitor": monitor}),
        },
        defaults={
            dimension.key: find_default_value(training, dimension.key) for dimension in space
        },
    )
    return StudyPlan(
        path, settings, base, data, tuple(space), describe_hold_out(origin, data.manifest)
    )


def build_plan_rows(plan: StudyPlan) -> dict[str, str]:
    """Return the rows of a plan for the console: name to text."""
    tree, settings = plan.to_json(), plan.settings
    counts, kind = tree["num_images"], "label" if tree["is_multi_label"] else "class"
    return {
        "data": f"{settings.data}: {format_count(tree['num_classes'], kind)}, "
        f"{format_count(counts['train'], 'training image')}, "
        f"{format_count(counts['val'], 'validation image')}",
        "gain on": plan.hold_out,
        "backbone": plan.config.model.backbone,
        "trials": f"{settings.num_trials}, the first with the default settings; chosen by "
        f"val/{settings.monitor}",
        "folder": str(plan.path),
    }


def build_space_rows(plan: StudyPlan) -> list[tuple[str, str, str]]:
    """Return the rows of the search space for the console: key, values and default."""
    return [
        (dimension.key, _describe_values(dimension), _describe_default(plan, dimension.key))
        for dimension in plan.space
    ]


def _describe_default(plan: StudyPlan, key: str) -> str:
    """Return the value of a key with the default settings, or a word for where it comes from."""
    default = plan.settings.defaults[key]
    if default is not None:
        return format_value(default)
    if key == "optim.lr":
        return "measured"
    if key.count(".") > 1:  # a parameter that is not given
        return "built-in"
    return "auto" if get_config_value(plan.config, key) == "auto" else _describe_unset(key)


def _describe_values(dimension: SearchDimension) -> str:
    """Return the range or the choices, with what null stands for."""
    text = dimension.describe()
    if None not in dimension.choices:
        return text
    return f"{text} (null: {_describe_unset(dimension.key)})"


def _describe_unset(key: str) -> str:
    return _UNSET.get(key, "off")


def _check_hold_out(manifest: Manifest) -> None:
    if not manifest.get_samples(Split.TEST):
        raise DataError(
            "No image is left to measure what the search gains: no class has two validation images "
            "that are not duplicates of each other. Add images, or a test split."
        )
    if not manifest.is_multi_label:
        return
    for split in (Split.VAL, Split.TEST):
        check_some_label(
            manifest.get_samples(split),
            f"{split.value} image",
            effect="no average precision compares the trials",
            remedy="Add images with labels, or leave the splits out.",
        )


def _check_task(training: Training) -> None:
    """Check that trials have epochs.

    Raises:
        ConfigError: The run is a linear probe only.
    """
    if training.is_probe_only:
        raise ConfigError(
            "unfreeze.name=linear_probe cannot be used with tune: the probe's only setting, its "
            "penalty, is chosen by cross-validation already. Leave it out, or compare backbones "
            "with finetune compare."
        )


def _merge_spaces(
    training: Training,
    config: Config,
    given: Sequence[SearchDimension],
    *,
    extends_default: bool,
) -> list[SearchDimension]:
    own = {dimension.key: dimension for dimension in given}
    if given and not extends_default:
        return list(own.values())
    default = {dimension.key: dimension for dimension in build_default_space(training, config)}
    merged = {**default, **own}
    if not merged:
        raise ConfigError(
            "There is nothing to search: every setting of the default search space is given. Leave "
            "some out, or name others with --search KEY=LOW:HIGH or --search KEY=A,B,C."
        )
    return list(merged.values())


def _collect_overrides(config: Config, base: Config) -> dict[str, Any]:
    """Return the settings that the user gave, with absolute paths."""
    overrides = diff_from_defaults(config)
    for key, value in (("model.weights", base.model.weights), ("augment.name", base.augment.name)):
        if key in overrides:
            overrides[key] = value
    return overrides
