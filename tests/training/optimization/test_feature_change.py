"""Tests of the measured change of the features: against a real step, and without side effects."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from finetune.builders import Training
from finetune.builders.optimization.optimizer_factory import build_creator, build_optimizer_factory
from finetune.builders.schedules import build_learning_rates
from finetune.data.dataset import Batch
from finetune.errors import OutOfMemoryError
from finetune.models.classifier import ImageClassifier, eval_mode, normalise
from finetune.models.head import capture_head_inputs, find_linear_head
from finetune.training.optimization.feature_change import TRIAL_LR, measure_feature_change
from tests.support.runs import create_small_training, write_photos, write_weights


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photos(tmp_path_factory.mktemp("photos"))


@pytest.fixture
def training(photos: Path, tmp_path: Path) -> Training:
    training = create_small_training(
        photos, model__weights=str(write_weights(tmp_path / "weights.pth"))
    )
    head = find_linear_head(training.module.classifier.network)
    assert head is not None
    torch.nn.init.normal_(head.weight, generator=torch.Generator().manual_seed(0))
    return training


def load_batches(training: Training) -> list[Batch]:
    dataset = training.datamodule.train_dataset
    return [dataset.__getitems__(list(range(first, first + 8))) for first in (0, 8, 16)]


def build_optimizer(
    training: Training, classifier: ImageClassifier, lr: float
) -> torch.optim.Optimizer:
    optim = training.config.optim
    rates = build_learning_rates(optim, len(classifier.groups), lr=lr / optim.backbone_lr_scale)
    return build_optimizer_factory(optim, peak_learning_rates=rates, is_fused=False)(classifier)


def measure(training: Training, *, micro_batch_size: int = 8) -> float | None:
    *batches, eval_batch = load_batches(training)
    return measure_feature_change(
        training.module,
        batches,
        eval_batch,
        make_optimizer=lambda classifier: build_optimizer(training, classifier, TRIAL_LR),
        create_optimizer=build_creator(training.config.optim, is_fused=False),
        micro_batch_size=micro_batch_size,
    )


def compute_features(training: Training, batch: Batch) -> Tensor:
    network, spec = training.module.classifier.network, training.network.spec
    head = find_linear_head(network)
    assert head is not None
    with torch.no_grad(), capture_head_inputs(head) as inputs:
        network(normalise(batch["image"], mean=spec.mean, std=spec.std))
    return inputs[0].double()


def test_measured_change_predicts_that_of_real_steps(training: Training) -> None:
    change = measure(training)
    assert change is not None
    classifier, batches = training.module.classifier, load_batches(training)
    lr = 0.02 / change
    with eval_mode(training.module):
        before = compute_features(training, batches[2])
        optimizer = build_optimizer(training, classifier, lr)
        for batch in batches[:2]:
            loss = training.module.recipe.criterion_schedule(0)(
                training.module(batch["image"]), batch["label"]
            )
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        after = compute_features(training, batches[2])
    spread = (before - before.mean(dim=0)).norm()
    assert float((after - before).norm() / spread) / 2 == pytest.approx(0.02, rel=0.25)


def test_measuring_leaves_weights_depth_and_modes(training: Training) -> None:
    classifier = training.module.classifier
    classifier.set_depth(2)
    classifier.train()
    before = {name: value.clone() for name, value in classifier.state_dict().items()}
    modes = [layer.training for layer in classifier.modules()]
    flags = [parameter.requires_grad for parameter in classifier.parameters()]
    assert measure(training)
    after = classifier.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert [layer.training for layer in classifier.modules()] == modes
    assert [parameter.requires_grad for parameter in classifier.parameters()] == flags
    assert all(parameter.grad is None for parameter in classifier.parameters())


def test_micro_batches_do_not_change_the_result(training: Training) -> None:
    whole, split = measure(training), measure(training, micro_batch_size=3)
    assert whole is not None
    assert split == pytest.approx(whole, rel=1e-3)


def test_features_that_do_not_differ_have_no_measure(training: Training) -> None:
    for parameter in training.module.classifier.network.parameters():
        torch.nn.init.zeros_(parameter)
    assert measure(training) is None


@pytest.mark.parametrize("first_label", [0, 1])
def test_batch_without_gradients_does_not_hinder_the_measurement(
    photos: Path, tmp_path: Path, first_label: int
) -> None:
    """The hinge loss of images that are far from the decision boundary is exactly 0."""
    weights = write_weights(tmp_path / "weights.pth")
    training = create_small_training(photos, model__weights=str(weights), loss__name="hinge")
    head = find_linear_head(training.module.classifier.network)
    assert head is not None
    torch.nn.init.normal_(head.weight, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        head.bias[0] = 1e4
    *batches, eval_batch = load_batches(training)
    images = {key: torch.cat([batch[key] for batch in batches]) for key in ("image", "label")}
    is_easy = images["label"] == 0
    rows = [is_easy, ~is_easy] if first_label == 0 else [~is_easy, is_easy]
    changes = [
        measure_feature_change(
            training.module,
            [Batch(**{key: value[row] for key, value in images.items()}) for row in part],  # type: ignore[typeddict-item]
            eval_batch,
            make_optimizer=lambda classifier: build_optimizer(training, classifier, TRIAL_LR),
            create_optimizer=build_creator(training.config.optim, is_fused=False),
            micro_batch_size=8,
        )
        for part in (rows, [is_easy])
    ]
    assert changes[0] is not None
    assert changes[0] > 0
    assert changes[1] is None, "no batch has gradients"


def test_running_out_of_memory_is_reported(
    training: Training, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_out(*args: object) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(ImageClassifier, "forward", run_out)
    with pytest.raises(OutOfMemoryError, match="memory"):
        measure(training)
