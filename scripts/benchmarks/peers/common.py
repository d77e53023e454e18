"""What every peer is given and leaves: a folder with train and val, predictions as JSON."""

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


def options() -> Namespace:
    """Return what recipe.py asks for, with all generators seeded."""
    parser = ArgumentParser()
    parser.add_argument("data", type=Path, help="folder of train and val, each of class folders")
    parser.add_argument("--backbone", required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, required=True, help="JSON: validation file to class")
    parser.add_argument("--epochs", type=int, help="in the place of the peer's own")
    found = parser.parse_args()
    random.seed(found.seed)
    np.random.seed(found.seed)
    torch.manual_seed(found.seed)
    return found


def offer_to_torchvision(name: str, weights: Path) -> None:
    """Put a weights file where torchvision looks for its own of a model, so that it loads it."""
    from torchvision.models import get_model_weights

    home = Path(tempfile.mkdtemp())
    (home / "hub" / "checkpoints").mkdir(parents=True)
    for entry in get_model_weights(name):
        file = home / "hub" / "checkpoints" / entry.url.rpartition("/")[2]
        if not file.is_symlink():
            file.symlink_to(weights.resolve())
    os.environ["TORCH_HOME"] = str(home)


def state_of(weights: Path) -> dict[str, Any]:
    """Return the tensors of a weights file."""
    state: dict[str, Any] = torch.load(weights, map_location="cpu", weights_only=True)
    return state


def leave(found: Namespace, predictions: Mapping[str, str]) -> None:
    """Write the predicted class of each validation file, by its path below ``val``."""
    found.output.write_text(json.dumps(dict(predictions)))
    sys.stdout.flush()
