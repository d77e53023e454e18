"""Section with paired tests: each run against the first one on the images that both hold out."""

from collections.abc import Sequence
from dataclasses import dataclass

from finetune.evaluation.multi_label.paired_labels import compare_paired_labels
from finetune.evaluation.paired_comparison import (
    PairedComparison,
    PairedDifference,
    compare_paired,
)
from finetune.report.comparison.runs_section import label_runs
from finetune.report.comparison.shared_images import (
    HELD_OUT,
    SharedImages,
    get_held_out,
    match_images,
)
from finetune.report.number_formats import format_difference, format_metric, format_metric_name
from finetune.report.run_facts import RunFacts
from finetune.units import format_count

_SEED = 0


@dataclass(frozen=True, slots=True)
class PairedRow:
    """Metric of two runs, as text.

    Attributes:
        metric: Name of the metric.
        before: Value of the first run.
        after: Value of the second run.
        difference: Signed difference, in points for fractions.
        interval: Its 95% interval.
        verdict: "better", "worse", or "no difference beyond chance".
    """

    metric: str
    before: str
    after: str
    difference: str
    interval: str
    verdict: str


@dataclass(frozen=True, slots=True)
class PairedTest:
    """Test of a run against the first one.

    Attributes:
        first: Label of the first run.
        second: Label of the second run.
        images: Sentence on the images, or on why the runs cannot be compared.
        rows: Metrics; empty where they cannot be compared.
        changes: Sentence on the images that only one of them classifies correctly.
    """

    first: str
    second: str
    images: str
    rows: tuple[PairedRow, ...]
    changes: str


@dataclass(frozen=True, slots=True)
class PairedSection:
    """Tests of all runs but the first."""

    tests: tuple[PairedTest, ...]


def build_paired(runs: Sequence[RunFacts]) -> PairedSection:
    """Return the tests of each run against the first one, for each split of both."""
    labels = label_runs(runs)
    tests = []
    for label, run in zip(labels[1:], runs[1:], strict=True):
        own = [
            test
            for split in HELD_OUT
            if (test := _test_split(runs[0], run, split, (labels[0], label))) is not None
        ]
        tests += own or [PairedTest(labels[0], label, _explain(runs[0], run), (), "")]
    return PairedSection(tuple(tests))


def _test_split(
    first: RunFacts, second: RunFacts, split: str, labels: tuple[str, str]
) -> PairedTest | None:
    shared = match_images(first, second, split)
    if shared is None:
        return None
    name = {"val": "validation", "test": "test"}[split]
    if not shared.target.size or (shared.target.ndim == 2 and not shared.target.any()):
        sentence = f"Not comparable on {name} images: no image is held out by both runs."
        return PairedTest(*labels, sentence, (), "")
    images = f"{format_count(len(shared.target), f'{name} image')} that both runs hold out"
    if shared.num_only_one:
        images += f"; {format_count(shared.num_only_one)} others are held out by one run only"
    if shared.num_relabelled:
        images += f"; {format_count(shared.num_relabelled)} are left out, as their classes differ"
    result = _compare(shared)
    is_right = "is right in all labels" if first.is_multi_label else "is right"
    changes = (
        f"{labels[1]} alone {is_right} on {format_count(result.num_only_second, 'image')}, "
        f"{labels[0]} alone on {format_count(result.num_only_first)} (exact McNemar test: "
        f"p\u00a0=\u00a0{result.mcnemar_p_value:.2g})."
    )
    rows = tuple(_describe(entry) for entry in result.differences.values())
    return PairedTest(*labels, f"On {images}.", rows, changes)


def _compare(shared: SharedImages) -> PairedComparison:
    """Return the paired comparison on shared images, of which at least one has a label."""
    if shared.thresholds is None:
        return compare_paired(
            shared.before, shared.after, shared.target, seed=_SEED, groups_N=shared.groups
        )
    return compare_paired_labels(
        shared.before,
        shared.after,
        shared.target > 0,
        thresholds=shared.thresholds,
        seed=_SEED,
        groups_N=shared.groups,
    )


def _describe(entry: PairedDifference) -> PairedRow:
    name = entry.metric
    low, high = (format_difference(value, name) for value in (entry.low, entry.high))
    return PairedRow(
        format_metric_name(name),
        format_metric(entry.before, name),
        format_metric(entry.after, name),
        format_difference(entry.difference, name),
        f"{low} to {high}",
        entry.verdict,
    )


def _explain(first: RunFacts, second: RunFacts) -> str:
    """Return why two runs have no test."""
    for run in (first, second):
        if all(get_held_out(run, split) is None for split in HELD_OUT):
            return (
                f"Not comparable: {run.path} has no stored predictions. Runs of an earlier release "
                f"and bundles have none; finetune evaluate compares models on a folder of images."
            )
    return "Not comparable: the runs have predictions of different splits."
