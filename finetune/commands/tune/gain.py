"""Gain of the best trial over the default settings, on images that chose nothing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from finetune.audit.leakage import find_rows_without_leaks
from finetune.bundle.bundle import load_model
from finetune.bundle.model_card import read_card_json
from finetune.config.schema import Config
from finetune.data.manifest import Manifest
from finetune.data.training_data import group_samples
from finetune.evaluation.multi_label.label_metrics import MEAN_AVERAGE_PRECISION
from finetune.evaluation.multi_label.paired_labels import compare_paired_labels
from finetune.evaluation.paired_comparison import PairedComparison, compare_paired
from finetune.inference.predictor import Predictor
from finetune.report.number_formats import format_metric_in_sentence
from finetune.system.hardware import prepare_accelerator
from finetune.system.run_folder import RunFolder
from finetune.types import Reporter, Sample, Split
from finetune.units import format_count

_BATCH_SIZE = 32


@dataclass(frozen=True, slots=True)
class TuneGain:
    """Comparison of the best trial with the default settings.

    Attributes:
        held_out: On the images that chose nothing.
        validation: On the validation images, which chose the best trial; too optimistic.
        num_leaked: Held-out images left out, as duplicates of them are in training or validation.
        monitor: Metric that chose the best trial.
        is_calibrated: Whether the models predict calibrated probabilities.
    """

    held_out: PairedComparison
    validation: PairedComparison
    num_leaked: int
    monitor: str
    is_calibrated: bool = True

    @property
    def metric(self) -> str:
        """Compared metric that decides: the one nearest to the metric that chose the best trial.

        One and not three: each 95% interval misses 0 in one of twenty studies without any gain.
        """
        if self.monitor.endswith("loss"):
            return "loss"
        differences = self.held_out.differences
        if self.monitor in differences:
            return self.monitor
        return MEAN_AVERAGE_PRECISION if MEAN_AVERAGE_PRECISION in differences else "macro_f1"

    @property
    def verdict(self) -> str:
        """Judgement of the best trial by ``metric``, as ``PairedDifference.verdict``."""
        return self.held_out.differences[self.metric].verdict

    @property
    def optimism(self) -> dict[str, float]:
        """Gain on the validation images minus that on the held-out images, by metric."""
        return {
            name: self.validation.differences[name].difference - held_out.difference
            for name, held_out in self.held_out.differences.items()
        }

    def to_json(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "held_out": self.held_out.to_json(),
            "validation": self.validation.to_json(),
            "num_leaked_left_out": self.num_leaked,
            "optimism": self.optimism,
            "metric": self.metric,
            "verdict": self.verdict,
            "summary": summarize_gain(self),
        }


def measure_gain(
    default_dir: Path,
    best_dir: Path,
    manifest: Manifest,
    config: Config,
    *,
    monitor: str,
    seed: int,
    reporter: Reporter,
) -> TuneGain | None:
    """Compare the models of two finished runs on the same images.

    Args:
        default_dir: Run folder of the trial with the default settings.
        best_dir: Run folder of the best trial.
        manifest: Images with their splits; the hold-out is the test split.
        config: Settings of the study, for the device and for reading images.
        monitor: Metric that chose the best trial.
        seed: Seed of the bootstrap.
        reporter: Receiver of progress.

    Returns:
        The comparison; None if every held-out image has a duplicate in training or validation, or
        none of the others has a label.
    """
    test = manifest.get_samples(Split.TEST)
    rows = find_rows_without_leaks(manifest, manifest.resolve_paths(test))
    kept = test if rows is None else [test[row] for row in rows]
    if not kept or not any(sample.class_names for sample in kept):
        return None
    tables = {}
    for split, samples in ((Split.TEST, kept), (Split.VAL, manifest.get_samples(Split.VAL))):
        paths = manifest.resolve_paths(samples)
        reporter.start(f"comparing on {split.value}", 2 * len(samples))
        default, best = (
            _predict(folder, paths, config, reporter) for folder in (default_dir, best_dir)
        )
        reporter.finish()
        tables[split] = _compare(default, best, manifest, samples, seed)
    return TuneGain(
        tables[Split.TEST],
        tables[Split.VAL],
        len(test) - len(kept),
        monitor,
        all(_is_calibrated(folder) for folder in (default_dir, best_dir)),
    )


def _compare(
    default: "_Predictions",
    best: "_Predictions",
    manifest: Manifest,
    samples: Sequence[Sample],
    seed: int,
) -> PairedComparison:
    """Return the paired comparison of two models on images, of one class or of any labels each."""
    tables = (default.probabilities, best.probabilities)
    targets, groups = manifest.encode_targets(samples), group_samples(samples)
    if targets.ndim == 1:
        return compare_paired(*tables, targets.astype(np.int64), seed=seed, groups_N=groups)
    assert default.thresholds is not None, "a multi-label model"
    assert best.thresholds is not None, "a multi-label model"
    return compare_paired_labels(
        *tables,
        targets > 0,
        thresholds=(default.thresholds, best.thresholds),
        seed=seed,
        groups_N=groups,
    )


def _is_calibrated(run_dir: Path) -> bool:
    """Return whether a run has fitted a temperature: not if that is off, or has too few images."""
    facts = read_card_json(RunFolder(run_dir).bundle_dir)["facts"]
    return facts.get("calibration") is not None


def summarize_gain(gain: TuneGain) -> str:
    """Return sentences on the gain, its interval and how much of it was chance."""
    name, table = format_metric_in_sentence(gain.metric), gain.held_out.differences
    images = format_count(gain.held_out.num_images, "held-out image")
    if gain.verdict == "better":
        first = f"The search gained beyond chance in {name} on the {images}."
    elif gain.verdict == "worse":
        first = (
            f"The best trial is worse than the default settings in {name} on the {images}, beyond "
            f"chance: keep the default settings."
        )
    else:
        first = (
            f"No gain in {name} beyond chance: its interval on the {images} includes 0. The "
            f"default settings do as well, as far as these images can tell."
        )
    worse = [
        format_metric_in_sentence(other)
        for other, diff in table.items()
        if other != gain.metric and diff.verdict == "worse"
    ]
    if worse and gain.verdict == "better":
        first += f" But it is worse in {_join(worse)}: look at the differences before you use it."
    second = (
        f"On the validation images, which chose the best of the trials, {name} changed by "
        f"{_format_change(gain.metric, gain.validation)}, and on the held-out images by "
        f"{_format_change(gain.metric, gain.held_out)}."
    )
    if gain.monitor == "calibrated_loss" and not gain.is_calibrated:
        second += (
            " Without calibration that is another metric than the calibrated log loss that chose: "
            "the two differ by more than luck."
        )
    elif gain.monitor not in ("calibrated_loss", gain.metric):
        second += f" The trials were chosen by {gain.monitor}, to which {name} is the nearest."
    return f"{first} {second}"


def _format_change(metric: str, comparison: PairedComparison) -> str:
    difference = comparison.differences[metric].difference
    return f"{difference:+.4f}" if metric == "loss" else f"{100 * difference:+.1f} points"


def describe_differences(
    comparison: Mapping[str, Any], *, decisive: str
) -> list[tuple[str, str, str, str, str]]:
    """Return rows of metric, default, best, difference with its 95% interval, and verdict.

    The verdict is given for the metric that decides only.

    Args:
        comparison: ``PairedComparison`` as JSON.
        decisive: The metric that decides.
    """
    lines = []
    for name, diff in comparison["differences"].items():
        is_loss = name == "loss"
        scale, spec, unit = (1, ".4f", "") if is_loss else (100, ".1f", "%")
        before, after = (f"{scale * diff[key]:{spec}}{unit}" for key in ("before", "after"))
        change, low, high = (
            f"{scale * diff[key]:+{spec}}" for key in ("difference", "low", "high")
        )
        verdict = {"no difference beyond chance": "chance"}.get(diff["verdict"], diff["verdict"])
        shown = str(verdict) if name == decisive else ""
        lines.append(
            (format_metric_in_sentence(name), before, after, f"{change} ({low} to {high})", shown)
        )
    return lines


@dataclass(frozen=True, slots=True)
class _Predictions:
    """Probabilities of images, shape (N, K), and the thresholds of a multi-label model."""

    probabilities: NDArray[np.float64]
    thresholds: Sequence[float] | None


def _predict(run_dir: Path, paths: list[Path], config: Config, reporter: Reporter) -> _Predictions:
    """Return the predictions of a run's model."""
    workers = config.data.num_workers
    predictor = Predictor(
        load_model(run_dir),
        device=prepare_accelerator(config.trainer.accelerator),
        batch_size=_BATCH_SIZE,
        num_workers=workers if isinstance(workers, int) else 0,
        options=config.data.read_options,
    )
    logits = predictor.predict_logits(paths, on_batch=reporter.advance)
    probabilities: torch.Tensor = predictor.compute_probabilities(logits)
    return _Predictions(probabilities.double().numpy(), predictor.card.thresholds)


def _join(names: list[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last
