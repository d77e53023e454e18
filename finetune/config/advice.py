"""Recommended options of a data set, from its counts and image sizes."""

from collections.abc import Mapping
from dataclasses import replace

from finetune.config.facts import Choice, Facts
from finetune.config.load import replace_values
from finetune.config.recipe import choose_recipe
from finetune.config.schema import Config

_DEFAULT_IMAGE_SIZE = 224
"""Side in pixels of most pretrained weights."""

_SMALL_IMAGE_SIZE = 64
"""Shorter side in pixels below which a side of 64 is recommended: a twelfth of the cost of 224."""

BACKBONE_GMACS = {"resnet18": 1.8, "resnet50": 4.1}
"""Billions of multiply-accumulates (GMACs) of a forward pass of an image of 224 pixels.

He et al. 2016, table 1 (https://arxiv.org/abs/1512.03385), with the stride of ResNet-50 in its
3x3 convolutions, as in torchvision and timm.
"""

_CPU_TMACS_PER_HOUR = 250.0
"""Trillions of multiply-accumulates that two CPU cores achieve in an hour: 70 GMACs per second."""


def recommend_options(
    class_counts: Mapping[str, int],
    *,
    shorter_side: float,
    val_fraction: float,
    multi_label_images: int | None = None,
) -> dict[str, Choice]:
    """Return the recommended value of each option, with its reason.

    Args:
        class_counts: Images of each class, including those that will be held out.
        shorter_side: Median shorter side of the images, in pixels.
        val_fraction: Fraction of the images that will be held out; 0 if they are not counted.
        multi_label_images: Images that have any number of labels each, including those that will be
            held out; None for images of one class.
    """
    counts = [max(1, round(count * (1 - val_fraction))) for count in class_counts.values()]
    # hardware and weights are unknown yet; what depends on them is left out
    facts = Facts(
        class_counts=counts,
        is_pretrained=True,
        num_groups=6,
        image_size=_DEFAULT_IMAGE_SIZE,
        has_fast_bf16=False,
        free_cores=1,
        multi_label_images=None
        if multi_label_images is None
        else max(1, round(multi_label_images * (1 - val_fraction))),
    )
    side = _SMALL_IMAGE_SIZE if shorter_side < _SMALL_IMAGE_SIZE else _DEFAULT_IMAGE_SIZE
    size_reason = f"half of the images have a shorter side of at most {shorter_side:.0f} pixels"
    recipe = choose_recipe(replace_values(Config(), {"data.image_size": side}), facts)
    advice = {
        "--backbone": (
            _recommend_backbone(facts, recipe)
            if side == _DEFAULT_IMAGE_SIZE
            else _recommend_small_backbone(facts, recipe, size_reason)
        ),
        "--imbalance": recipe["imbalance.strategy"],
        "--batch-size": recipe["trainer.batch_size"],
        "trainer.monitor": recipe["trainer.monitor"],
    }
    if side < _DEFAULT_IMAGE_SIZE:
        advice["--image-size"] = Choice(
            str(side),
            f"{size_reason}; {_DEFAULT_IMAGE_SIZE} is slightly more accurate, at 12 times the cost",
        )
    # the audit also reports the ratio of all images
    return {
        option: replace(choice, reason=f"{choice.reason} of the training images")
        if "imbalance ratio" in choice.reason
        else choice
        for option, choice in advice.items()
    }


def _recommend_backbone(facts: Facts, choices: Mapping[str, Choice]) -> Choice:
    """Return the larger backbone with its cost, which depends on the number of images.

    In linear probes of 5 to 70 images per class (TrashNet and hymenoptera, five draws each)
    ResNet-50 beat ResNet-18 in five of six cases, with few images as with many.
    """
    cost = {
        name: _compute_training_tmacs(gmacs, facts, choices, image_size=_DEFAULT_IMAGE_SIZE)
        for name, gmacs in BACKBONE_GMACS.items()
    }
    larger, smaller = _format_two_digits(cost["resnet50"]), _format_two_digits(cost["resnet18"])
    reason = f"{facts.num_images:,} training images cost about {larger} TMACs in total"
    hours = cost["resnet50"] / _CPU_TMACS_PER_HOUR
    if hours < 1:
        remark = f"feasible on a CPU; resnet18 costs {smaller}, but is usually less accurate"
    else:
        remark = f"{hours:,.0f} h on two CPU cores; without a GPU prefer resnet18 ({smaller})"
    return Choice("resnet50", f"{reason}, {remark}")


def _recommend_small_backbone(
    facts: Facts, choices: Mapping[str, Choice], size_reason: str
) -> Choice:
    """Return the smaller backbone, better on images of 32 pixels in eight of twelve cases.

    TrashNet, hymenoptera and MNIST, 5 and 20 images per class, upscaled to 64 and to 224 pixels. On
    images of 64 pixels upscaled to 224 it was worse in four of four cases.
    """
    side = _SMALL_IMAGE_SIZE
    cost = {
        name: _compute_training_tmacs(gmacs, facts, choices, image_size=side)
        for name, gmacs in BACKBONE_GMACS.items()
    }
    smaller, larger = _format_two_digits(cost["resnet18"]), _format_two_digits(cost["resnet50"])
    return Choice(
        "resnet18",
        f"{size_reason}, where larger backbones gain little; {facts.num_images:,} training images "
        f"cost about {smaller} TMACs in total, {larger} with resnet50",
    )


def _format_two_digits(value: float) -> str:
    """Return a number rounded to two digits, without an exponent."""
    return f"{float(f'{value:.2g}'):,.10g}"


def _compute_training_tmacs(
    gmacs: float, facts: Facts, choices: Mapping[str, Choice], *, image_size: int
) -> float:
    """Return the trillions of multiply-accumulates (TMACs) of the default training.

    One forward pass for the probe, and epochs with a backward pass, which costs twice as much.
    """
    train_side = choices["data.train_image_size"].value[0]
    passes = (
        image_size**2 + 3 * choices["trainer.epochs"].value * train_side**2
    ) / _DEFAULT_IMAGE_SIZE**2
    return float(facts.num_images * gmacs * passes / 1000)
