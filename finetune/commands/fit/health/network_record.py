"""Record of the layers of a run's network before and after training: ``network.json``."""

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from finetune.builders import Training
from finetune.builders.network import build_network
from finetune.bundle.bundle import load_model
from finetune.bundle.checkpoint_file import NETWORK_PREFIX, load_checkpoint_file
from finetune.commands.fit.health.health_sample import HealthSample
from finetune.commands.fit.process_group import get_device
from finetune.distributed.rendezvous import Rendezvous
from finetune.models.layer_groups import find_layer_groups
from finetune.models.statistics.layer_weights import compute_changes, find_weighted_layers
from finetune.models.statistics.network_health import measure_gradients, measure_layers_health
from finetune.system.files import write_text
from finetune.system.run_folder import RunFolder
from finetune.types import Reporter

_BATCH_SIZE = 16
_NUM_GRADIENT_IMAGES = 8


def record_start(
    run: RunFolder, training: Training, rendezvous: Rendezvous | None, reporter: Reporter
) -> None:
    """Measure the layers before the first epoch, unless that is done or the config turns it off.

    Weights, statistics and random generators of the network are left as they are. A failure is a
    warning.

    Args:
        run: Run folder.
        training: Objects of the run, with the weights that training starts from.
        rendezvous: Rendezvous of the ranks, of which the first one measures; None for one process.
        reporter: Receiver of the warning.
    """
    is_started = run.last_checkpoint_path.is_file() or run.network_path.is_file()
    is_other_rank = rendezvous is not None and rendezvous.launch.rank > 0
    if training.config.report.network_health == "off" or is_started or is_other_rank:
        return
    device = get_device(training, rendezvous)
    try:
        network = training.module.to(device).classifier.network
        sample = HealthSample(training, device)
        before = {"layers": _measure_layers(network, sample)}
        _write(run, {"num_images": len(sample), "before": before})
    except Exception as error:
        _warn(reporter, error)


def record_end(
    run: RunFolder, training: Training, rendezvous: Rendezvous | None, reporter: Reporter
) -> None:
    """Measure the layers, gradients and weight changes of the best model, as ``record_start``.

    Args:
        run: Run folder with the best checkpoint.
        training: Objects of the run.
        rendezvous: Rendezvous of the ranks; None for a single process.
        reporter: Receiver of the warning.
    """
    if training.config.report.network_health == "off":
        return
    device = get_device(training, rendezvous)
    try:
        record = _read(run)
        network = load_model(run.best_checkpoint_path).network
        network = network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        groups = find_layer_groups(network)
        sample = HealthSample(training, device, num_images=record.get("num_images"))
        images, labels = sample.load(0, min(len(sample), _NUM_GRADIENT_IMAGES))
        gradients = measure_gradients(network, groups, images, labels)
        _write(
            run,
            {
                "num_images": len(sample),
                "before": record.get("before"),
                "after": {"layers": _measure_layers(network, sample)},
                "weights": []
                if training.is_probe_only
                else _measure_changes(run, training, network),
                "gradients": [gradient.to_json() for gradient in gradients],
            },
        )
    except Exception as error:
        _warn(reporter, error)


def _measure_layers(network: nn.Module, sample: HealthSample) -> list[dict[str, Any]]:
    layers = measure_layers_health(
        network,
        find_layer_groups(network),
        sample.load,
        num_images=len(sample),
        batch_size=_BATCH_SIZE,
    )
    return [layer.to_json() for layer in layers]


def _measure_changes(
    run: RunFolder, training: Training, network: nn.Module
) -> list[dict[str, str | float | None]]:
    """Return how far the weights of each layer are from where training started, if it did."""
    if training.is_probe_only:
        return []
    layers = find_weighted_layers(network, find_layer_groups(network))
    changes = compute_changes(layers, _load_start(run, training), dict(network.named_parameters()))
    return [
        {"name": layer.name, "group": layer.group, "relative_change": change}
        for layer, change in zip(layers, changes, strict=True)
    ]


def _load_start(run: RunFolder, training: Training) -> Mapping[str, Tensor]:
    """Return the weights from which training started, by name."""
    if run.start_checkpoint_path.is_file():
        state: Mapping[str, Tensor] = load_checkpoint_file(run.start_checkpoint_path)["state_dict"]
        return {name.removeprefix(NETWORK_PREFIX): tensor for name, tensor in state.items()}
    config = training.config  # without a probe, they follow from the config
    network = build_network(
        config.model,
        num_classes=len(training.data.classes),
        num_channels=config.data.channels,
        image_size=config.data.image_size,
        seed=config.seed,
        checkpoint_card=None,
    )
    return network.module.state_dict()


def _read(run: RunFolder) -> dict[str, Any]:
    """Return the record as it is; empty if there is none to read."""
    try:
        record: dict[str, Any] = json.loads(run.network_path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record


def _write(run: RunFolder, record: Mapping[str, Any]) -> None:
    write_text(run.network_path, json.dumps(record, indent=1, allow_nan=False) + "\n")


def _warn(reporter: Reporter, error: Exception) -> None:
    reason = (str(error).partition("\n")[0] or repr(error)).rstrip(".")
    reporter.warn(
        f"The layers of the network could not be measured: {reason}. Training is not affected; "
        f"report.network_health=off leaves this out."
    )
