"""Published ImageNet error rates."""

import timm
import torchvision

from finetune.commands.compare.imagenet_figures import ARCHITECTURE_FIGURES, TIMM_FIGURES
from finetune.commands.compare.imagenet_reference import find_imagenet_error_rates
from finetune.models import torchvision_models

torchvision_models.register()


def test_figures_are_of_existing_weights_and_top5_is_below_top1() -> None:
    assert [name for name in ARCHITECTURE_FIGURES if not timm.is_model(name)] == []
    assert set(TIMM_FIGURES) <= set(timm.list_pretrained())
    figures = [*ARCHITECTURE_FIGURES.values(), *TIMM_FIGURES.values()]
    assert all(0 < top5 < top1 < 50 for top1, top5, _ in figures)


def test_figures_of_torchvision_weights_agree_with_its_own_metadata() -> None:
    compared = 0
    for name, (top1, top5, _) in TIMM_FIGURES.items():
        architecture, _, tag = name.partition(".")
        if tag != "tv_in1k" or not hasattr(torchvision.models, architecture):
            continue
        weights = torchvision.models.get_model_weights(architecture).IMAGENET1K_V1
        accuracy = weights.meta["_metrics"]["ImageNet-1K"]
        # timm evaluates some with bicubic interpolation
        assert abs(100 - accuracy["acc@1"] - top1) < 0.5, name
        assert abs(100 - accuracy["acc@5"] - top5) < 0.3, name
        compared += 1
    assert compared >= 15


def test_find_imagenet_error_rates_of_hub_weights_follows_their_tag() -> None:
    default = find_imagenet_error_rates("resnet50")
    tagged = find_imagenet_error_rates("resnet50.tv_in1k")
    assert default is not None
    assert tagged is not None
    assert (default.top1, default.top5) == (18.786, 4.898)
    assert "resnet50.a1_in1k at 288 px" in default.source
    assert (tagged.top1, tagged.is_of_weights) == (23.87, True)


def test_find_imagenet_error_rates_of_googlenet_are_torchvisions() -> None:
    figures = find_imagenet_error_rates("googlenet")
    assert figures is not None
    assert (figures.top1, figures.top5, figures.is_of_weights) == (30.222, 10.47, True)
    assert "GoogLeNet_Weights.IMAGENET1K_V1" in figures.source


def test_find_imagenet_error_rates_of_a_file_needs_its_published_name() -> None:
    known = find_imagenet_error_rates("resnet50", weights="/w/resnet50-0676ba61.pth")
    assert known is not None
    assert (known.top1, known.is_of_weights) == (23.87, True)
    for backbone in ("resnet50", "resnet50.a1_in1k", "inception_resnet_v2", "resnet18"):
        for name in ("my.pth", "resnet50.pth", "runs/a"):
            assert find_imagenet_error_rates(backbone, weights=f"/w/{name}") is None


def test_find_imagenet_error_rates_of_inception_resnet_v2() -> None:
    figures = find_imagenet_error_rates("inception_resnet_v2")
    assert figures is not None
    assert (figures.top1, figures.is_of_weights) == (19.538, True)


def test_find_imagenet_error_rates_of_unknown_weights_are_not_those_of_a_tag() -> None:
    for tag in ("bamboo", "nosuch"):
        figures = find_imagenet_error_rates(f"resnet50.{tag}")
        assert figures is None or not figures.is_of_weights
    assert find_imagenet_error_rates("test_resnet") is None
    assert find_imagenet_error_rates("hf-hub:someone/something") is None
