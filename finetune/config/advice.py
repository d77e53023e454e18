"""What the counts of a data set speak for, before a backbone is chosen."""

from collections.abc import Mapping
from dataclasses import replace

from finetune.config.facts import Choice, Facts
from finetune.config.load import replaced
from finetune.config.recipe import recipe
from finetune.config.schema import Config

_SIDE = 224
"""What the usual weights expect, in pixels."""

_SMALL_IMAGE = 64
"""Pixels on the shorter side below which a side of 64 is advised: a twelfth of the work of 224."""

GFLOPS = {"resnet18": 1.8, "resnet50": 4.1}
"""Billions of multiply-adds that an image of 224 pixels costs going forward.

He et al. 2016, table 1 (https://arxiv.org/abs/1512.03385), with the stride of ResNet-50 in its
3x3 convolutions, as in torchvision and timm.
"""

_HOUR = 250.0
"""TFLOPs, of multiply-adds, that two CPU cores came to in an hour: 70 billion a second."""


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
        image_size=_SIDE,
        fast_bf16=False,
        free_cores=1,
    )
    side = _SMALL_IMAGE if shorter_side < _SMALL_IMAGE else _SIDE
    few_pixels = f"half of the images have at most {shorter_side:.0f} pixels a side"
    found = recipe(replaced(Config(), {"data.image_size": side}), facts)
    advice = {
        "--backbone": (
            _backbone(facts, found) if side == _SIDE else _small(facts, found, few_pixels)
        ),
        "--imbalance": found["imbalance.strategy"],
        "--batch-size": found["trainer.batch_size"],
        "trainer.monitor": found["trainer.monitor"],
    }
    if side < _SIDE:
        advice["--image-size"] = Choice(
            str(side),
            f"{few_pixels}; a twelfth of the work of {_SIDE}, which is somewhat more accurate",
        )
    # the page of an audit also shows the ratio of all images
    return {
        option: replace(choice, reason=f"{choice.reason}, of the images that will train")
        if "the smallest" in choice.reason
        else choice
        for option, choice in advice.items()
    }


def _backbone(facts: Facts, found: Mapping[str, Choice]) -> Choice:
    """Return the larger one and what it costs, which is all that the number of images changes.

    In linear probes of 5 to 70 images a class (TrashNet and hymenoptera, five draws each) ResNet-50
    beat ResNet-18 in five cases of six, with few images as with many.
    """
    cost = {name: _cost(gflops, facts, found, side=_SIDE) for name, gflops in GFLOPS.items()}
    work, less = _rounded(cost["resnet50"]), _rounded(cost["resnet18"])
    reason = f"{facts.num_images:,} training images cost about {work} TFLOPs in all"
    hours = cost["resnet50"] / _HOUR
    if hours < 1:
        remark = f"little on a CPU, too; resnet18, with {less}, is mostly weaker"
    else:
        remark = f"{hours:,.0f} h on two CPU cores; without a GPU rather resnet18, with {less}"
    return Choice("resnet50", f"{reason}, {remark}")


def _small(facts: Facts, found: Mapping[str, Choice], few_pixels: str) -> Choice:
    """Return the smaller one, which on images of 32 pixels was ahead in eight cases of twelve.

    TrashNet, hymenoptera and MNIST, 5 and 20 a class, enlarged to 64 pixels and to 224. Of images
    shrunk to 64 and enlarged to 224 it was behind in four of four.
    """
    side = _SMALL_IMAGE
    cost = {name: _cost(gflops, facts, found, side=side) for name, gflops in GFLOPS.items()}
    work, more = _rounded(cost["resnet18"]), _rounded(cost["resnet50"])
    return Choice(
        "resnet18",
        f"{few_pixels}, from which a larger one gains little; {facts.num_images:,} training images "
        f"cost about {work} TFLOPs in all, {more} with resnet50",
    )


def _rounded(value: float) -> str:
    """Return two digits of a number, in full."""
    return f"{float(f'{value:.2g}'):,.10g}"


def _cost(gflops: float, facts: Facts, found: Mapping[str, Choice], *, side: int) -> float:
    """Return the TFLOPs, of multiply-adds, that the default training costs.

    One pass of the probe, and epochs that go forward and back, which costs twice as much again.
    """
    train_side = found["data.train_sizes"].value[0]
    passes = (side**2 + 3 * found["trainer.epochs"].value * train_side**2) / _SIDE**2
    return float(facts.num_images * gflops * passes / 1000)
