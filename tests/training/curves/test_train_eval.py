"""Training images measured as validation images are; training itself does not change."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score, log_loss

import finetune
from finetune.builders import Training, build_trainer_options
from finetune.training.callbacks.unfreeze_scheduler import UnfreezeScheduler
from finetune.training.trainer import create_trainer, fit
from tests.support.networks import randomise
from tests.support.runs import create_small_config, create_small_training, read_rows

pytestmark = pytest.mark.runs


def train(training: Training, folder: Path) -> dict[str, float]:
    """Train all epochs and return the last metrics."""
    trainer = create_trainer(
        folder, build_trainer_options(training.config), callbacks=[UnfreezeScheduler()], loggers=[]
    )
    fit(trainer, training.module, training.datamodule, checkpoint_path=None)
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


def test_train_eval_equals_a_plain_loop_over_the_sample(animals: Path, tmp_path: Path) -> None:
    training = create_small_training(
        animals, optim__lr=0.05, loss__label_smoothing=0.2, augment__name="strong",
        optim__swa_fraction=0.5, model__batch_norm="frozen",
    )  # fmt: skip
    randomise(training.module.classifier.network)
    metrics = train(training, tmp_path)
    sample = training.datamodule.train_eval_dataset
    assert sample is not None
    files = [sample.source.get_name(row) for row in range(len(sample))]
    train_files = [str(path) for path in training.data.train.paths]
    rows = [train_files.index(str(name)) for name in files]
    labels = training.data.train.labels[rows]
    assert len(set(rows)) == len(training.data.val) == 15
    assert np.bincount(labels).tolist() == [5, 5, 5]

    module = training.module.eval()
    average = module.average
    assert average is not None
    module.load_state_dict({**module.state_dict(), **average.tensors})
    with torch.no_grad():
        pixels = torch.stack([torch.as_tensor(sample[row]["image"]) for row in range(15)])
        probabilities = module(pixels).softmax(dim=1).double().numpy()
    predicted = probabilities.argmax(1)
    expected = {
        "train_eval/loss": log_loss(labels, probabilities / probabilities.sum(1, keepdims=True)),
        "train_eval/accuracy": accuracy_score(labels, predicted),
        "train_eval/balanced_accuracy": balanced_accuracy_score(labels, predicted),
        "train_eval/macro_f1": f1_score(labels, predicted, average="macro"),
    }
    assert {name: metrics[name] for name in expected} == pytest.approx(expected, abs=1e-5)
    names = [{n.partition("/")[2] for n in metrics if n.startswith(p)} for p in ("val/", "train_e")]
    assert names[0] == names[1]


@pytest.mark.parametrize("cache", ["on", "off"])
def test_bundle_is_the_same_with_and_without_the_sample(
    animals: Path, tmp_path: Path, cache: str
) -> None:
    digests, rows = [], []
    for value in ("on", "off"):
        run = tmp_path / value
        finetune.fit(
            create_small_config(
                data__path=str(animals),
                output=str(run),
                trainer__train_eval=value,
                data__cache=cache,
                augment__name="medium",
                model__drop_rate=0.2,
                report__enabled="off",
            )
        )
        weights = (run / "bundle" / "model.safetensors").read_bytes()
        digests.append(hashlib.sha256(weights).hexdigest())
        rows.append(read_rows(run))
    assert digests[0] == digests[1]
    for with_sample, without in zip(*rows, strict=True):
        assert not any(name.startswith("train_eval/") for name in without)
        for name in without.keys() - {"seconds", "images_per_second"}:
            assert with_sample[name] == without[name], name
