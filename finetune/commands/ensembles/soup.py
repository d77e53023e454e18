"""Model soups: runs that started from the same weights, averaged to one network."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from finetune.bundle.bundle import ModelBundle, load_model
from finetune.commands.ensembles.member_runs import find_shared_validation_images, read_member_runs
from finetune.commands.ensembles.soup_checks import check_soup
from finetune.data.dataset import ImageDataset, create_loader
from finetune.data.images.source import FileSource
from finetune.data.manifest import Manifest
from finetune.data.training_data import group_samples
from finetune.data.transforms.eval_transform import EvalTransform
from finetune.errors import ConfigError
from finetune.evaluation.calibration import calibrate
from finetune.evaluation.metrics import log_loss
from finetune.inference.predictor import Predictor
from finetune.models.classifier import normalise
from finetune.models.weight_soup import (
    average_networks,
    have_equal_statistics,
    recompute_statistics,
)
from finetune.types import Reporter, Split
from finetune.units import format_count, format_percent

METHODS = ("greedy", "uniform")
"""Values of ``--soup``."""

_BATCH_SIZE = 32
_MAX_STATISTICS_IMAGES = 2048


@dataclass(frozen=True, slots=True)
class _Score:
    """Validation images that a network predicts correctly, and its log loss on them."""

    accuracy: float
    loss: float


class _Kitchen:
    """Averages networks and scores them on the validation images that the runs share."""

    def __init__(self, paths: Sequence[Path], card_of: ModelBundle, reporter: Reporter) -> None:
        members = read_member_runs(paths)
        shared = find_shared_validation_images(members, option="--soup", reporter=reporter)
        run = members[0].run
        assert run is not None, "checked above"
        self.manifest: Manifest = run.manifest
        self.samples = shared.samples
        self.files = [shared.root / sample.path for sample in shared.samples]
        index = {name: number for number, name in enumerate(card_of.card.classes)}
        self.labels = torch.tensor([index[sample.label] for sample in shared.samples])
        self.bundle = card_of

    def average(self, networks: Sequence[nn.Module]) -> nn.Module:
        """Return the mean network, with BatchNorm statistics of its own if those differ."""
        network = average_networks(networks)
        if not have_equal_statistics(networks):
            recompute_statistics(network, self._iterate_training_batches())
        return network

    def compute_logits(self, network: nn.Module) -> Tensor:
        """Return the logits of the validation images, shape (N, V, K)."""
        bundle = replace(self.bundle, network=network)
        return Predictor(bundle, device="cpu", batch_size=_BATCH_SIZE).predict_logits(self.files)

    def score(self, network: nn.Module) -> _Score:
        """Return accuracy and log loss of the validation images."""
        bundle = replace(self.bundle, network=network)
        probabilities = Predictor(bundle, device="cpu").compute_probabilities(
            self.compute_logits(network)
        )
        correct = probabilities.argmax(dim=1) == self.labels
        loss = float(log_loss(probabilities, self.labels))
        return _Score(float(correct.double().mean()), loss)

    def _iterate_training_batches(self) -> Iterator[Tensor]:
        """Yield normalised training images of the first run, at most 2,048 of them."""
        files = self.manifest.resolve_paths(self.manifest.get_samples(Split.TRAIN))
        step = -(-len(files) // _MAX_STATISTICS_IMAGES)
        spec, options = self.bundle.card.spec, self.bundle.card.read_options
        dataset = ImageDataset(
            FileSource(files[::step], options=options), None, EvalTransform(spec)
        )
        for batch in create_loader(dataset, batch_size=_BATCH_SIZE, num_workers=0):
            yield normalise(batch["image"], mean=spec.mean, std=spec.std)


def cook_soup(paths: Sequence[Path], *, method: str, reporter: Reporter) -> ModelBundle:
    """Return the network that averages the weights of runs with the same start.

    The greedy soup begins with the run of the highest validation accuracy, and takes each further
    run, in that order, if the accuracy of the average does not fall (Wortsman et al. 2022,
    recipe 1, https://arxiv.org/abs/2203.05482). Of equal accuracies the lower log loss is higher.
    The temperature is fitted anew on the validation images.

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
    kitchen = _Kitchen(paths, bundles[0], reporter)
    reporter.start("averaging weights", len(paths))
    scores = [kitchen.score(bundle.network) for bundle in bundles]
    order = sorted(range(len(paths)), key=lambda row: (-scores[row].accuracy, scores[row].loss))
    chosen = order if method == "uniform" else order[:1]
    network = kitchen.average([bundles[row].network for row in chosen])
    current = kitchen.score(network)
    for row in order[1:] if method == "greedy" else ():
        candidate = kitchen.average([bundles[r].network for r in (*chosen, row)])
        score = kitchen.score(candidate)
        if score.accuracy >= current.accuracy:
            chosen, network, current = [*chosen, row], candidate, score
        reporter.advance()
    reporter.finish()
    are_equal = have_equal_statistics([bundles[row].network for row in chosen])
    facts: dict[str, Any] = {
        "method": method,
        "runs": [
            {"run": str(paths[row]), "chosen": row in chosen, "val_accuracy": scores[row].accuracy}
            for row in order
        ],
        "val_accuracy": current.accuracy,
        "num_val_images": len(kitchen.files),
        "batch_norm": "unchanged" if are_equal else "recomputed on training images",
    }
    reporter.note(_describe_soup(facts))
    first = bundles[order[0]]
    kept = ("weights", "train_images", "imbalance", "flipped", "flipped_by")
    card = replace(
        first.card,
        facts={**{key: first.card.facts[key] for key in kept if key in first.card.facts},
               "soup": facts},
    )  # fmt: skip
    return _calibrate(replace(first, network=network, card=card), kitchen)


def _calibrate(bundle: ModelBundle, kitchen: _Kitchen) -> ModelBundle:
    """Return the model with a temperature fitted on the validation images."""
    card = replace(bundle.card, temperature=1.0)
    logits = kitchen.compute_logits(bundle.network)[:, 0]
    result = calibrate(logits, kitchen.labels, groups=group_samples(kitchen.samples))
    if result is not None:
        facts = {**card.facts, "calibration": result.to_json()}
        card = replace(card, temperature=result.temperature, facts=facts)
    return replace(bundle, card=card)


def _describe_soup(facts: dict[str, Any]) -> str:
    runs = facts["runs"]
    chosen = [run for run in runs if run["chosen"]]
    names = ", ".join(f"{run['run']} {format_percent(run['val_accuracy'])}" for run in runs)
    return (
        f"Averaged the weights of {len(chosen)} of {format_count(len(runs), 'run')}"
        f" ({facts['method']}): {', '.join(run['run'] for run in chosen)}. Accuracy on "
        f"{format_count(facts['num_val_images'], 'shared validation image')}: "
        f"{format_percent(facts['val_accuracy'])} (runs: {names}). BatchNorm statistics: "
        f"{facts['batch_norm']}."
    )
