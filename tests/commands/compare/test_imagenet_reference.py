"""The classics' published errors."""

import timm

from finetune.models import torchvision_models as zoo
from finetune.commands.compare.imagenet_reference import IMAGENET_ERROR_RATES, find_imagenet_error_rates

zoo.register()


def test_every_classic_is_a_backbone_that_errs_less_in_five_guesses() -> None:
    assert [name for name in IMAGENET_ERROR_RATES if not timm.is_model(name)] == []
    assert all(0 < error.top5 < error.top1 < 50 for error in IMAGENET_ERROR_RATES.values())


def test_the_deeper_of_a_family_errs_no_more() -> None:
    errors = [IMAGENET_ERROR_RATES[f"resnet{depth}"].top1 for depth in (50, 101, 152)]
    assert errors == sorted(errors, reverse=True)


def test_a_tag_is_no_other_architecture_but_a_longer_name_is() -> None:
    assert find_imagenet_error_rates("resnet50.a1_in1k") == IMAGENET_ERROR_RATES["resnet50"]
    assert find_imagenet_error_rates("vgg16_bn") is None
    assert find_imagenet_error_rates("resnet18") is None
