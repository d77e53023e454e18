"""Model soups: runs that started from the same weights, averaged to one network."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from finetune.bundle.bundle import ModelBundle, load_model
from finetune.bundle.model_card import ModelCard
from finetune.bundle.validation_choices import TRAINING_CHOICES_KEY, list_training_choices
from finetune.commands.ensembles.distinct_models import check_distinct_models
from finetune.commands.ensembles.member_runs import find_shared_validation_images, read_member_runs
from finetune.commands.ensembles.soup_checks import check_soup
from finetune.commands.ensembles.statistics_batches import iterate_statistics_batches
from finetune.commands.evaluation.label_shift import compute_label_shift
from finetune.commands.stored_run import read_stored_config
from finetune.data.manifest import Manifest
from finetune.data.training_data import group_samples
from finetune.errors import ConfigError
from finetune.evaluation.calibration import Calibration, calibrate
from finetune.evaluation.multi_label.label_calibration import calibrate_labels
from finetune.evaluation.multi_label.label_metrics import MEAN_AVERAGE_PRECISION
from finetune.evaluation.multi_label.label_thresholds import choose_thresholds
from finetune.inference.predictor import Predictor
from finetune.inference.scoring import evaluate_targets
from finetune.models.head import compute_backbone_digest
from finetune.models.weight_soup import (
    average_networks,
    have_equal_statistics,
    recompute_statistics,
)
from finetune.system.run_folder import RunFolder
from finetune.types import Reporter
from finetune.units import format_count, format_percent

METHODS = ("greedy", "uniform")
"""Values of ``--soup``."""

_BATCH_SIZE = 32


@dataclass(frozen=True, slots=True)
class _Score:
    """Metric of the validation images that a network is chosen by, and its log loss on them."""

    value: float
    loss: float


class _RunAverager:
    """Averages networks and scores them on the validation images that the runs share."""

    def __init__(self, paths: Sequence[Path], card: ModelCard, reporter: Reporter) -> None:
        members = read_member_runs(paths)
        shared = find_shared_validation_images(members, option="--soup", reporter=reporter)
        run = members[0].run
        assert run is not None, "checked above"
        self.manifest: Manifest = run.manifest
        self.samples = shared.samples
        self.files = [shared.root / sample.path for sample in shared.samples]
        self.targets = replace(run.manifest, classes=card.classes).encode_targets(shared.samples)
        self.metric = MEAN_AVERAGE_PRECISION if card.is_multi_label else "accuracy"
        if card.is_multi_label and not self.targets.any():
            raise ConfigError(
                f"--soup scores runs by mean average precision, but none of the "
                f"{format_count(len(self.files), 'validation image')} that they share has a label. "
                f"Train them with validation images of each label, or export the best run alone."
            )
        configs = [read_stored_config(RunFolder(path)) for path in paths]
        self.calibrates = all(config.calibration.enabled == "on" for config in configs)

    def average(self, networks: Sequence[nn.Module], base: ModelBundle) -> ModelBundle:
        """Return the mean network with the card of ``base``, calibrated like a run.

        Its BatchNorm statistics are its own if those of the networks differ.
        """
        network = average_networks(networks)
        if not have_equal_statistics(networks):
            recompute_statistics(network, iterate_statistics_batches(self.manifest, base.card))
        return self._calibrate(
            replace(base, network=network, card=replace(base.card, temperature=1.0))
        )

    def score(self, bundle: ModelBundle) -> _Score:
        """Return the metric and log loss of the validation images, by a model with its own card."""
        predictor = Predictor(bundle, device="cpu")
        metrics = evaluate_targets(predictor, self._compute_logits(bundle), self.targets).metrics
        return _Score(metrics[self.metric], metrics["loss"])

    def _compute_logits(self, bundle: ModelBundle) -> Tensor:
        """Return the logits of the validation images, shape (N, V, K)."""
        return Predictor(bundle, device="cpu", batch_size=_BATCH_SIZE).predict_logits(self.files)

    def _calibrate(self, bundle: ModelBundle) -> ModelBundle:
        """Return a model with a temperature fitted on the validation images, if runs fit one.

        The thresholds of a multi-label model are chosen on them, too.
        """
        if not (self.calibrates or bundle.card.is_multi_label):
            return bundle
        logits, targets = self._compute_logits(bundle)[:, 0], torch.from_numpy(self.targets)
        result = self._fit_temperature(logits, targets, bundle.card) if self.calibrates else None
        card = bundle.card
        if result is not None:
            facts = {**card.facts, "calibration": result.to_json()}
            card = replace(card, temperature=result.temperature, facts=facts)
        if card.is_multi_label:
            probabilities = (logits.double() / card.temperature).sigmoid()
            card = replace(card, thresholds=choose_thresholds(probabilities, targets))
        return replace(bundle, card=card)

    def _fit_temperature(
        self, logits: Tensor, targets: Tensor, card: ModelCard
    ) -> Calibration | None:
        groups = group_samples(self.samples)
        if card.is_multi_label:
            return calibrate_labels(logits, targets, groups=groups)
        shift = compute_label_shift(targets, card)
        return calibrate(logits, targets, shift=shift, groups=groups)


def average_runs(paths: Sequence[Path], *, method: str, reporter: Reporter) -> ModelBundle:
    """Return the network that averages the weights of runs with the same start.

    The greedy soup begins with the run of the highest validation accuracy, and takes each further
    run, in that order, if the accuracy of the average does not fall (Wortsman et al. 2022,
    recipe 1, https://arxiv.org/abs/2203.05482). Of equal accuracies the lower log loss is higher.
    Multi-label runs are chosen by their mean average precision instead of the accuracy. The
    temperature is fitted anew on the validation images if that of the runs was
    (``calibration.enabled``), the thresholds of labels always are, and every run is scored with its
    own.

    Args:
        paths: Run folders.
        method: "greedy" or "uniform", which averages all runs.
        reporter: Receives progress, and a note on what was averaged.

    Raises:
        ConfigError: The method is unknown, there is one run, or the runs cannot be averaged; the
            message has the reason.
        RunFolderError: A run is missing or damaged.
    """
    if method not in METHODS:
        raise ConfigError(f"--soup {method}: unknown. Choose one of {', '.join(METHODS)}.")
    if len(paths) < 2:
        raise ConfigError(
            "--soup averages several runs, but there is one. Name the others, too, or leave out "
            "--soup."
        )
    bundles = [load_model(path) for path in paths]
    check_soup(paths, bundles)
    check_distinct_models(bundles, paths)
    averager = _RunAverager(paths, bundles[0].card, reporter)
    reporter.start("averaging weights", len(paths))
    scores = [averager.score(bundle) for bundle in bundles]
    order = sorted(range(len(paths)), key=lambda row: (-scores[row].value, scores[row].loss))
    chosen = order if method == "uniform" else order[:1]
    base = _clear_facts(bundles[order[0]], bundles)
    soup = averager.average([bundles[row].network for row in chosen], base)
    current = averager.score(soup)
    for row in order[1:] if method == "greedy" else ():
        candidate = averager.average([bundles[r].network for r in (*chosen, row)], base)
        score = averager.score(candidate)
        if score.value >= current.value:
            chosen, soup, current = [*chosen, row], candidate, score
        reporter.advance()
    reporter.finish()
    networks = [bundles[row].network for row in chosen]
    are_equal = have_equal_statistics(networks)
    key = f"val_{averager.metric}"
    facts: dict[str, Any] = {
        "method": method,
        "runs": [
            {"run": str(paths[row]), "chosen": row in chosen, key: scores[row].value}
            for row in order
        ],
        key: current.value,
        "num_val_images": len(averager.files),
        "batch_norm": "unchanged" if are_equal else "recomputed on training images",
    }
    reporter.note(_describe_soup(facts, averager.metric))
    if len(chosen) > 1 and len({compute_backbone_digest(network) for network in networks}) == 1:
        reporter.note(
            "The averaged runs have the same backbone, as runs that kept their linear probe do: "
            "only their heads were averaged."
        )
    return replace(soup, card=replace(soup.card, facts={**soup.card.facts, "soup": facts}))


def _clear_facts(first: ModelBundle, bundles: Sequence[ModelBundle]) -> ModelBundle:
    """Return a model with only those facts on its card that hold for an average of models."""
    kept = (
        "weights", "base_model", "weights_license", "train_images", "imbalance", "loss", "flipped",
        "flipped_by", "data",
    )  # fmt: skip
    facts = {key: first.card.facts[key] for key in kept if key in first.card.facts}
    choices = (list_training_choices(bundle.card.facts) for bundle in bundles)
    facts[TRAINING_CHOICES_KEY] = list(dict.fromkeys(key for keys in choices for key in keys))
    if score_losses := [one.card.score_loss for one in bundles if one.card.score_loss is not None]:
        facts["loss"] = score_losses[0]  # a part of scores leaves the mean without a class prior
    return replace(first, card=replace(first.card, facts=facts))


def _describe_soup(facts: dict[str, Any], metric: str) -> str:
    runs, key = facts["runs"], f"val_{metric}"
    chosen = [run for run in runs if run["chosen"]]
    names = ", ".join(f"{run['run']} {format_percent(run[key])}" for run in runs)
    return (
        f"Averaged the weights of {len(chosen)} of {format_count(len(runs), 'run')}"
        f" ({facts['method']}): {', '.join(run['run'] for run in chosen)}. "
        f"{metric.replace('_', ' ').capitalize()} on "
        f"{format_count(facts['num_val_images'], 'shared validation image')}: "
        f"{format_percent(facts[key])} (runs: {names}). BatchNorm statistics: "
        f"{facts['batch_norm']}."
    )
