"""Options and output of the peers: a folder with train and test, predictions as JSON."""

import json
import os
import random
import sys
import tempfile
from argparse import ArgumentParser, Namespace
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch


def parse_options() -> Namespace:
    """Return the options passed by recipe.py, with all generators seeded."""
    parser = ArgumentParser()
    parser.add_argument("data", type=Path, help="folder of train, test and, for some peers, val")
    parser.add_argument("--backbone", required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--kwargs", type=json.loads, default={}, help="of timm.create_model")
    parser.add_argument("--cfg", type=json.loads, default={}, help="overrides of pretrained_cfg")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, required=True, help="JSON: test file to class")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--epochs", type=int, help="instead of the peer's default")
    options = parser.parse_args()
    random.seed(options.seed)
    np.random.seed(options.seed)
    torch.manual_seed(options.seed)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())))
    return options


def install_torchvision_weights(name: str, weights: Path) -> None:
    """Link a weights file into a new hub folder, so that torchvision loads it for a model."""
    from torchvision.models import get_model_weights

    home = Path(tempfile.mkdtemp())
    (home / "hub" / "checkpoints").mkdir(parents=True)
    for entry in get_model_weights(name):
        file = home / "hub" / "checkpoints" / entry.url.rpartition("/")[2]
        if not file.is_symlink():
            file.symlink_to(weights.resolve())
    os.environ["TORCH_HOME"] = str(home)


def is_in_torchvision(options: Namespace) -> bool:
    """Return whether torchvision has the network under the same name."""
    import torchvision

    return options.backbone in torchvision.models.list_models() and not options.kwargs


def load_state_dict(weights: Path) -> dict[str, Any]:
    """Return the tensors of a weights file."""
    state: dict[str, Any] = torch.load(weights, map_location="cpu", weights_only=True)
    return state


def check_loaded(networks: Iterable[torch.nn.Module], state: Mapping[str, Any]) -> None:
    """Exit unless every parameter and statistic of the networks has the value of a file.

    Args:
        networks: Parts of a backbone without its classifier.
        state: Tensors of the file.

    Raises:
        SystemExit: If a tensor differs: a peer that starts from other weights is not compared.
    """
    stored = [t.float() for t in state.values() if t.is_floating_point()]
    sums = {(tuple(t.shape), round(float(t.double().sum()), 3)) for t in stored}
    for network in networks:
        for name, tensor in network.state_dict().items():
            own = (tuple(tensor.shape), round(float(tensor.double().sum()), 3))
            if tensor.is_floating_point() and own not in sums:
                raise SystemExit(f"{name} was not loaded from the weights file")


def write_predictions(options: Namespace, predictions: Mapping[str, str]) -> None:
    """Write the predicted class of each test file, by its path below ``test``."""
    options.output.write_text(json.dumps(dict(predictions)))
    sys.stdout.flush()
