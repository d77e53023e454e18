"""A network is cut where its last groups begin, whatever its family, and computes the same."""

import pytest
import timm
import torch
from torch import Tensor, nn

import finetune
from finetune.models.classifier import ImageClassifier
from finetune.models.graph_split import split_before, split_last_groups
from finetune.models.groups import find_layer_groups
from tests.support.networks import randomise

FAMILIES = (
    "test_resnet", "test_vit", "test_efficientnet", "test_convnext", "resnet18", "alexnet",
    "googlenet", "densenet121", "mobilenetv2_100", "swin_tiny_patch4_window7_224", "levit_128s",
    "efficientformer_l1",
)  # fmt: skip


def images_of(network: nn.Module) -> Tensor:
    side = int(network.pretrained_cfg["input_size"][-1])  # type: ignore[index]
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_both_parts_compute_what_the_whole_does(family: str, depth: int) -> None:
    network = timm.create_model(family, num_classes=3).eval()
    randomise(network)
    halves = split_last_groups(network, depth)
    assert halves is not None
    images = images_of(network)
    with torch.no_grad():
        torch.testing.assert_close(
            halves.last_stage(halves.trunk(images)), network(images), rtol=0, atol=0
        )


@pytest.mark.parametrize("family", ["test_resnet", "test_vit", "alexnet", "googlenet"])
def test_what_is_to_train_is_in_the_second_part_alone(family: str) -> None:
    network = timm.create_model(family, num_classes=3).eval()
    halves = split_last_groups(network, 2)
    assert halves is not None
    trained = {name for group in find_layer_groups(network)[:2] for name in group.parameter_names}
    assert trained.isdisjoint(name for name, _ in halves.trunk.named_parameters())
    with torch.no_grad():
        maps = halves.trunk(images_of(network))
    halves.last_stage(maps).sum().backward()
    reached = {name for name, p in network.named_parameters() if p.grad is not None}
    assert reached == trained


def test_dropout_is_that_of_the_mode_at_the_cut() -> None:
    network = timm.create_model("test_resnet", num_classes=3, drop_rate=0.5)
    classifier = ImageClassifier(network)
    classifier.set_depth(2)
    train, quiet = (split_last_groups(classifier.train(mode).network, 2) for mode in (True, False))
    assert train is not None
    assert quiet is not None
    assert train.node_name == quiet.node_name
    with torch.no_grad():
        maps = quiet.trunk(images_of(network))
        assert torch.equal(quiet.last_stage(maps), quiet.last_stage(maps))
        assert not torch.equal(train.last_stage(maps), train.last_stage(maps))


def test_where_everything_trains_there_is_nothing_before() -> None:
    network = timm.create_model("test_resnet", num_classes=3).eval()
    assert split_last_groups(network, len(find_layer_groups(network))) is None


class _Asking(nn.Module):
    """Decides by what it computes, which no graph shows."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(2, 2), nn.Linear(2, 2)

    def forward(self, images: Tensor) -> Tensor:
        maps: Tensor = self.first(images)
        logits: Tensor = self.last(maps if maps.sum() > 0 else -maps)
        return logits


def test_what_cannot_be_followed_is_not_cut() -> None:
    assert split_before(_Asking(), ["last.weight", "last.bias"]) is None


@pytest.mark.parametrize("family", ["levit_128s", "efficientformer_l1", "test_vit"])
def test_cutting_leaves_no_mark(family: str) -> None:
    network = timm.create_model(family, num_classes=3).eval()
    randomise(network)
    images = images_of(network)
    with torch.no_grad():
        before = network(images)
    attributes = {name: set(vars(part)) for name, part in network.named_modules()}
    modes = [part.training for part in network.modules()]
    halves = [split_last_groups(network, 2) for _ in range(2)]
    assert attributes == {name: set(vars(part)) for name, part in network.named_modules()}
    assert modes == [part.training for part in network.modules()]
    # what it has kept of an earlier pass is not taken for a constant
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(0.9)
        network.train().eval()
        after = network(images)
        assert not torch.equal(before, after)
        for cut in halves:
            assert cut is not None
            torch.testing.assert_close(cut.last_stage(cut.trunk(images)), after, rtol=0, atol=0)
