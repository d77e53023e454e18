"""Advice follows the rules of the recipe."""

import pytest

from finetune.config.advice import advise
from finetune.config.facts import Facts
from finetune.config.recipe import recipe
from finetune.config.schema import Config


def facts_of(*counts: int) -> Facts:
    return Facts(
        class_counts=counts,
        pretrained=True,
        num_groups=6,
        image_size=224,
        fast_bf16=False,
        free_cores=1,
    )


@pytest.mark.parametrize(
    ("counts", "share", "training"),
    [
        ({"a": 100, "b": 100}, 0.2, (80, 80)),
        ({"a": 100, "b": 100}, 0.0, (100, 100)),
        ({"a": 3000, "b": 30}, 0.2, (2400, 24)),
        ({"a": 1, "b": 1}, 0.9, (1, 1)),
        ({"a": 50_000, "b": 50_000}, 0.0, (50_000, 50_000)),
        ({"a": 5}, 0.2, (4,)),
    ],
)
def test_it_is_what_fit_would_choose(
    counts: dict[str, int], share: float, training: tuple[int, ...]
) -> None:
    found = advise(counts, shorter_side=500, val_share=share)
    chosen = recipe(Config(), facts_of(*training))
    assert found["--batch-size"] == chosen["trainer.batch_size"]
    assert found["trainer.monitor"].value == chosen["trainer.monitor"].value


@pytest.mark.parametrize(("side", "is_small"), [(28, True), (63, True), (64, False), (500, False)])
def test_small_images_are_not_blown_up(side: float, is_small: bool) -> None:
    found = advise({"a": 50, "b": 50}, shorter_side=side, val_share=0.2)
    assert ("--image-size" in found) == is_small
    if is_small:
        assert found["--image-size"].value == "64"
        assert f"{side} pixels" in found["--image-size"].reason


def test_a_ratio_is_said_to_be_of_the_images_that_will_train() -> None:
    found = advise({"a": 3000, "b": 30}, shorter_side=500, val_share=0.2)
    reasons = [choice.reason for choice in found.values() if "smallest" in choice.reason]
    assert reasons
    assert all(reason.endswith("of the images that will train") for reason in reasons)


def test_every_choice_has_a_reason() -> None:
    for choice in advise({"a": 1, "b": 9}, shorter_side=9, val_share=0.0).values():
        assert choice.reason
