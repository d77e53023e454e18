"""What the counts of a data set speak for, before a backbone is chosen."""

from collections.abc import Mapping
from dataclasses import replace

from finetune.config.facts import Choice, Facts
from finetune.config.load import replace_values
from finetune.config.recipe import choose_recipe
from finetune.config.schema import Config

_DEFAULT_IMAGE_SIZE = 224
"""What the usual weights expect, in pixels."""

_SMALL_IMAGE_SIZE = 64
"""Pixels on the shorter side below which a side of 64 is advised: a twelfth of the work of 224."""

BACKBONE_GMACS = {"resnet18": 1.8, "resnet50": 4.1}
"""Billions of multiply-adds that an image of 224 pixels costs going forward.

He et al. 2016, table 1 (https://arxiv.org/abs/1512.03385), with the stride of ResNet-50 in its
3x3 convolutions, as in torchvision and timm.
"""

_CPU_TMACS_PER_HOUR = 250.0
"""TFLOPs, of multiply-adds, that two CPU cores came to in an hour: 70 billion a second."""


def recommend_options(
    class_counts: Mapping[str, int], *, shorter_side: float, val_fraction: float
) -> dict[str, Choice]:
    """Return option to what to choose, and why.

    Args:
        class_counts: Images of each class, those that will be held out among them.
        shorter_side: Median of the images, in pixels.
        val_fraction: Of the images that will be held out; 0 where they are not counted.
    """
    counts = [max(1, round(count * (1 - val_fraction))) for count in class_counts.values()]
    # of the machine and the weights nothing is known yet; what depends on them is left out
    facts = Facts(
        class_counts=counts,
        is_pretrained=True,
        num_groups=6,
        image_size=_DEFAULT_IMAGE_SIZE,
        has_fast_bf16=False,
        free_cores=1,
    )
    side = _SMALL_IMAGE_SIZE if shorter_side < _SMALL_IMAGE_SIZE else _DEFAULT_IMAGE_SIZE
    few_pixels = f"half of the images have a shorter side of at most {shorter_side:.0f} pixels"
    found = choose_recipe(replace_values(Config(), {"data.image_size": side}), facts)
    advice = {
        "--backbone": (
            _recommend_backbone(facts, found)
            if side == _DEFAULT_IMAGE_SIZE
            else _recommend_small_backbone(facts, found, few_pixels)
        ),
        "--imbalance": found["imbalance.strategy"],
        "--batch-size": found["trainer.batch_size"],
        "trainer.monitor": found["trainer.monitor"],
    }
    if side < _DEFAULT_IMAGE_SIZE:
        advice["--image-size"] = Choice(
            str(side),
            f"{few_pixels}; {_DEFAULT_IMAGE_SIZE} is slightly more accurate, at 12 times the cost",
        )
    # the page of an audit also shows the ratio of all images
    return {
        option: replace(choice, reason=f"{choice.reason} of the training images")
        if "imbalance ratio" in choice.reason
        else choice
        for option, choice in advice.items()
    }


def _recommend_backbone(facts: Facts, choices: Mapping[str, Choice]) -> Choice:
    """Return the larger one and what it costs, which is all that the number of images changes.

    In linear probes of 5 to 70 images a class (TrashNet and hymenoptera, five draws each) ResNet-50
    beat ResNet-18 in five cases of six, with few images as with many.
    """
    cost = {
        name: _compute_training_tmacs(gflops, facts, choices, image_size=_DEFAULT_IMAGE_SIZE)
        for name, gflops in BACKBONE_GMACS.items()
    }
    work, less = _format_two_digits(cost["resnet50"]), _format_two_digits(cost["resnet18"])
    reason = f"{facts.num_images:,} training images cost about {work} TFLOPs in total"
    hours = cost["resnet50"] / _CPU_TMACS_PER_HOUR
    if hours < 1:
        remark = f"feasible on a CPU; resnet18 costs {less}, but is usually less accurate"
    else:
        remark = f"{hours:,.0f} h on two CPU cores; without a GPU prefer resnet18 ({less})"
    return Choice("resnet50", f"{reason}, {remark}")


def _recommend_small_backbone(
    facts: Facts, choices: Mapping[str, Choice], size_reason: str
) -> Choice:
    """Return the smaller one, which on images of 32 pixels was ahead in eight cases of twelve.

    TrashNet, hymenoptera and MNIST, 5 and 20 a class, enlarged to 64 pixels and to 224. Of images
    shrunk to 64 and enlarged to 224 it was behind in four of four.
    """
    side = _SMALL_IMAGE_SIZE
    cost = {
        name: _compute_training_tmacs(gflops, facts, choices, image_size=side)
        for name, gflops in BACKBONE_GMACS.items()
    }
    work, more = _format_two_digits(cost["resnet18"]), _format_two_digits(cost["resnet50"])
    return Choice(
        "resnet18",
        f"{size_reason}, where larger backbones gain little; {facts.num_images:,} training images "
        f"cost about {work} TFLOPs in total, {more} with resnet50",
    )


def _format_two_digits(value: float) -> str:
    """Return two digits of a number, in full."""
    return f"{float(f'{value:.2g}'):,.10g}"


def _compute_training_tmacs(
    gmacs: float, facts: Facts, choices: Mapping[str, Choice], *, image_size: int
) -> float:
    """Return the TFLOPs, of multiply-adds, that the default training costs.

    One pass of the probe, and epochs that go forward and back, which costs twice as much again.
    """
    train_side = choices["data.train_image_size"].value[0]
    passes = (
        image_size**2 + 3 * choices["trainer.epochs"].value * train_side**2
    ) / _DEFAULT_IMAGE_SIZE**2
    return float(facts.num_images * gmacs * passes / 1000)
