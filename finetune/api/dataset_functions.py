"""Functions of ``import finetune`` that accept a data path instead of a config."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from finetune.api.fit_options import FitOptions, build_fit_config

if TYPE_CHECKING:
    from finetune.commands.compare.result import CompareResult
    from finetune.commands.fit.fit import FitResult
    from finetune.commands.fit.lr_find import LearningRateResult
    from finetune.commands.inspect.inspect import InspectResult
    from finetune.commands.tune.tune_result import TuneResult
    from finetune.config.schema import Config
    from finetune.types import Reporter, StrPath


def fit(
    data: "StrPath | Config",
    *,
    config: Mapping[str, Any] | None = None,
    reporter: "Reporter | None" = None,
    **options: Unpack[FitOptions],
) -> "FitResult":
    """Train a new run on a dataset, for example ``finetune.fit("photos/", epochs=5)``.

    Under torchrun or srun every process calls this; rank 0 prepares the run folder and the others
    join it.

    Args:
        data: Folder or CSV of images, or a complete config.
        config: Dotted config key to value, for example ``{"data.leakage": "error"}``.
        reporter: Receiver of notes, warnings and progress; None discards them.
        **options: Options of ``finetune fit`` with underscores, for example ``batch_size=64``.

    Raises:
        FinetuneError: Any error that the user can fix.
        KeyboardInterrupt: The run was stopped by a signal; the run folder can be resumed.
    """
    run_config = build_fit_config(data, config=config, **options)
    from finetune.commands.fit.fit import fit as run_fit

    return run_fit(run_config, reporter=reporter)


def plan_fit(
    data: "StrPath | Config",
    *,
    config: Mapping[str, Any] | None = None,
    with_layers: bool = False,
    reporter: "Reporter | None" = None,
    **options: Unpack[FitOptions],
) -> dict[str, Any]:
    """Return the plan of ``fit`` with the same arguments, without training.

    Args:
        data: Folder or CSV of images, or a complete config.
        config: Dotted config key to value, for example ``{"data.leakage": "error"}``.
        with_layers: Whether to measure each layer, too, as "layers" of the plan.
        reporter: Receiver of notes, warnings and the plan; None discards them.
        **options: Options of ``finetune fit`` with underscores.

    Raises:
        FinetuneError: Any error that the user can fix.
    """
    run_config = build_fit_config(data, config=config, **options)
    from finetune.commands.fit.fit import plan_fit as run_plan_fit

    return run_plan_fit(run_config, with_layers=with_layers, reporter=reporter)


def find_learning_rate(
    data: "StrPath | Config",
    *,
    config: Mapping[str, Any] | None = None,
    reporter: "Reporter | None" = None,
    **options: Unpack[FitOptions],
) -> "LearningRateResult":
    """Test the learning rates of a new run, as ``finetune fit --lr-find`` does.

    The probe is fitted and no epoch is trained; ``finetune.resume`` trains the run.

    Args:
        data: Folder or CSV of images, or a complete config.
        config: Dotted config key to value, for example ``{"data.leakage": "error"}``.
        reporter: Receiver of notes, warnings and progress; None discards them.
        **options: Options of ``finetune fit`` with underscores.

    Raises:
        FinetuneError: Any error that the user can fix.
        KeyboardInterrupt: Stop requested; the run folder can be resumed.
    """
    run_config = build_fit_config(data, config=config, **options)
    from finetune.commands.fit.lr_find import find_learning_rate as run_find_learning_rate

    return run_find_learning_rate(run_config, reporter=reporter)


def inspect(
    data: "StrPath | Config",
    *,
    backbone: str | None = None,
    weights: "StrPath | None" = None,
    output: "StrPath | None" = None,
    config: Mapping[str, Any] | None = None,
    reporter: "Reporter | None" = None,
) -> "InspectResult":
    """Audit a dataset and write a report; the images are never changed.

    Args:
        data: Folder or CSV of images, or a complete config.
        backbone: Backbone whose features are searched for label errors and cropped duplicates, too;
            None searches without features.
        weights: Weights of the backbone; None takes those of the hub.
        output: Folder to write; None takes ``runs/audit-<data>``.
        config: Dotted config key to value.
        reporter: Receiver of notes, warnings and progress; None discards them.

    Raises:
        FinetuneError: Any error that the user can fix.
    """
    options = FitOptions(
        **{
            name: value
            for name, value in (("backbone", backbone), ("weights", weights), ("output", output))
            if value is not None
        }  # type: ignore[typeddict-item]
    )
    run_config = build_fit_config(data, config=config, **options)
    from finetune.commands.inspect.inspect import inspect as run_inspect

    return run_inspect(run_config, reporter=reporter)


def compare(
    data: "StrPath | Config",
    backbones: str | Sequence[str],
    *,
    weights: str = "hub",
    csv: "StrPath | None" = None,
    config: Mapping[str, Any] | None = None,
    reporter: "Reporter | None" = None,
) -> "CompareResult":
    """Fit a linear probe to each backbone on the same images and rank them.

    Args:
        data: Folder or CSV of images, or a complete config.
        backbones: timm names, googlenet or alexnet.
        weights: "hub", or a folder with one file for each backbone.
        csv: CSV file to write the table to; None writes none.
        config: Dotted config key to value; only keys that a probe depends on.
        reporter: Receiver of notes, warnings and progress; None discards them.

    Raises:
        FinetuneError: Any error that the user can fix.
        KeyboardInterrupt: Stop requested; computed features stay in the cache.
    """
    run_config = build_fit_config(data, config=config)
    from finetune.commands.compare.compare import compare as run_compare

    csv_path = None if csv is None else Path(csv)
    return run_compare(run_config, backbones, weights=weights, csv=csv_path, reporter=reporter)


def tune(
    data: "StrPath | Config",
    *,
    trials: int = 20,
    timeout_seconds: float | None = None,
    jobs: int = 1,
    search: "Mapping[str, Any] | StrPath | None" = None,
    with_default_space: bool = False,
    config: Mapping[str, Any] | None = None,
    reporter: "Reporter | None" = None,
    **options: Unpack[FitOptions],
) -> "TuneResult":
    """Search for better settings than the defaults, and report what they gain.

    Args:
        data: Folder or CSV of images, or a complete config.
        trials: Number of trials; the first has the default settings.
        timeout_seconds: Time after which no trial begins; None for no limit.
        jobs: Number of processes that run trials at the same time.
        search: Dotted config key to a list of values, ``"LOW:HIGH"`` or ``"LOW:HIGH:log"``, or
            a YAML file of them; None searches the default space.
        with_default_space: Whether ``search`` adds to the default space.
        config: Dotted config key to value that all trials share.
        reporter: Receiver of notes, warnings and progress; None discards them.
        **options: Options of ``finetune fit`` with underscores, which all trials share.

    Raises:
        FinetuneError: Any error that the user can fix.
        KeyboardInterrupt: Stop requested; ``resume_tune`` continues the study.
    """
    run_config = build_fit_config(data, config=config, **options)
    from finetune.commands.tune.space.search_space import read_space
    from finetune.commands.tune.tune import TuneOptions
    from finetune.commands.tune.tune import tune as run_tune

    size = TuneOptions(trials, timeout_seconds, jobs, read_space(search), with_default_space)
    return run_tune(run_config, size, reporter=reporter)


def resume_tune(
    study: "StrPath",
    *,
    trials: int | None = None,
    timeout_seconds: float | None = None,
    jobs: int = 1,
    reporter: "Reporter | None" = None,
) -> "TuneResult":
    """Continue a search that was stopped, or extend it; raises as ``tune`` does.

    Args:
        study: Folder of the study.
        trials: Number of trials in all; None keeps that of the study.
        timeout_seconds: As for ``tune``.
        jobs: As for ``tune``.
        reporter: As for ``tune``.
    """
    from finetune.commands.tune.tune import TuneOptions
    from finetune.commands.tune.tune import resume_tune as run_resume_tune

    return run_resume_tune(study, TuneOptions(trials, timeout_seconds, jobs), reporter=reporter)
