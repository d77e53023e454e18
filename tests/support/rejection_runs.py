"""Run whose bundle has the statistics for ``--reject``: digits of scikit-learn."""

from pathlib import Path

import numpy as np
from PIL import Image

from finetune.commands.demo.digits import write_digits
from finetune.commands.fit.fit import fit
from tests.support.runs import create_small_config


def fit_digits(folder: Path) -> Path:
    """Return the run of a linear probe on the digits 0 to 4, of which 75 are validation images."""
    write_digits(folder)
    config = create_small_config(
        data__path=str(folder / "digits-0-4"),
        rejection__enabled="on",
        probe__enabled="on",
        unfreeze__name="linear_probe",
        trainer__epochs="auto",
        output=str(folder / "run"),
    )
    return fit(config).run_dir


def write_noise(folder: Path, count: int = 10) -> Path:
    """Write images of noise, which are no digits."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(5)
    for number in range(count):
        pixels = random.integers(0, 256, (32, 32, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder
