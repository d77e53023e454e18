"""Published ImageNet error rates."""

import timm

from finetune.commands.compare.imagenet_reference import (
    IMAGENET_ERROR_RATES,
    find_imagenet_error_rates,
)
from finetune.models import torchvision_models

torchvision_models.register()


def test_error_rates_are_of_timm_models_and_top5_is_below_top1() -> None:
    assert [name for name in IMAGENET_ERROR_RATES if not timm.is_model(name)] == []
    assert all(0 < error.top5 < error.top1 < 50 for error in IMAGENET_ERROR_RATES.values())


def test_error_rates_of_deeper_resnets_are_lower() -> None:
    errors = [IMAGENET_ERROR_RATES[f"resnet{depth}"].top1 for depth in (50, 101, 152)]
    assert errors == sorted(errors, reverse=True)


def test_find_imagenet_error_rates_ignores_tag_but_not_architecture() -> None:
    assert find_imagenet_error_rates("resnet50.a1_in1k") == IMAGENET_ERROR_RATES["resnet50"]
    assert find_imagenet_error_rates("vgg16_bn") is None
    assert find_imagenet_error_rates("resnet18") is None
