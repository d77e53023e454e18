"""Options and output of the peers: a folder with train and val, predictions as JSON."""

import json
import os
import random
import sys
import tempfile
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch


def parse_options() -> Namespace:
    """Return the options passed by recipe.py, with all generators seeded."""
    parser = ArgumentParser()
    parser.add_argument("data", type=Path, help="folder of train and val, each of class folders")
    parser.add_argument("--backbone", required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, required=True, help="JSON: validation file to class")
    parser.add_argument("--epochs", type=int, help="instead of the peer's default")
    options = parser.parse_args()
    random.seed(options.seed)
    np.random.seed(options.seed)
    torch.manual_seed(options.seed)
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


def load_state_dict(weights: Path) -> dict[str, Any]:
    """Return the tensors of a weights file."""
    state: dict[str, Any] = torch.load(weights, map_location="cpu", weights_only=True)
    return state


def write_predictions(options: Namespace, predictions: Mapping[str, str]) -> None:
    """Write the predicted class of each validation file, by its path below ``val``."""
    options.output.write_text(json.dumps(dict(predictions)))
    sys.stdout.flush()
