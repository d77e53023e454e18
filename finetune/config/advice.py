"""What the counts of a data set speak for, before a backbone is chosen."""

from collections.abc import Mapping
from dataclasses import replace

from finetune.config.facts import Choice, Facts
from finetune.config.recipe import recipe
from finetune.config.schema import Config

_SMALL_IMAGE = 64
"""Pixels on the shorter side below which enlarging to 224 shows a backbone nothing new."""


def advise(
    class_counts: Mapping[str, int], *, shorter_side: float, val_share: float
) -> dict[str, Choice]:
    """Return option to what to choose, and why.

    Args:
        class_counts: Images of each class, those that will be held out among them.
        shorter_side: Median of the images, in pixels.
        val_share: Of the images that will be held out; 0 where they are not counted.
    """
    counts = [max(1, round(count * (1 - val_share))) for count in class_counts.values()]
    # of the machine and the weights nothing is known yet; what depends on them is left out
    facts = Facts(
        class_counts=counts,
        pretrained=True,
        num_groups=6,
        image_size=224,
        fast_bf16=False,
        free_cores=1,
    )
    found = recipe(Config(), facts)
    advice = {
        "--backbone": _backbone(),
        "--imbalance": found["imbalance.strategy"],
        "--batch-size": found["trainer.batch_size"],
        "trainer.monitor": found["trainer.monitor"],
    }
    if shorter_side < _SMALL_IMAGE:
        advice["--image-size"] = Choice(
            "64", f"half of the images have at most {shorter_side:.0f} pixels a side"
        )
    # the page of an audit also shows the ratio of all images
    return {
        option: replace(choice, reason=f"{choice.reason}, of the images that will train")
        if "the smallest" in choice.reason
        else choice
        for option, choice in advice.items()
    }


def _backbone() -> Choice:
    """By what an image of 224 pixels costs (He et al. 2016, table 1)."""
    return Choice("resnet50", "4.1 GFLOPs an image; on a CPU rather resnet18, with 1.8")
