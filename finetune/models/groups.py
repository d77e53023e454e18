"""Layer groups of any timm model: its own coarse groups, mended, numbered from the head."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from timm.models import group_parameters
from torch import nn

from finetune.errors import ModelError


@dataclass(frozen=True, slots=True)
class LayerGroup:
    """Layers that freeze and thaw together.

    Attributes:
        name: Where it begins in the network, unique in the model; "head" for the classifier.
        parameter_names: Their names in the network.
        num_parameters: Count of single numbers.
        vector_names: Names of those with one dimension, as biases; noted here, since FSDP makes vectors
            of all of them.
    """

    name: str
    parameter_names: tuple[str, ...]
    num_parameters: int
    vector_names: frozenset[str]


def compute_weight_rms(network: nn.Module, group: LayerGroup) -> float:
    """Return how large the weights of a group are: the median of its matrices' root mean squares.

    A step of AdamW moves each weight by about the learning rate, whatever the gradient: over this
    it is the share of a layer that one step changes. Networks differ in it widely.
    """
    parameters = dict(network.named_parameters())
    sizes = [
        parameters[name].detach().float().square().mean().sqrt()
        for name in group.parameter_names
        if name not in group.vector_names
    ]
    return float(torch.stack(sizes).median())


def find_layer_groups(network: nn.Module) -> tuple[LayerGroup, ...]:
    """Return the groups, the classifier alone first, the stem last; each parameter in one.

    timm's ``group_matcher(coarse=True)`` says what belongs together. Two things are mended: what
    shares the classifier's group (a VGG's fc6 and fc7) becomes the last backbone group, and a group
    of vectors only (a BatchNorm cut off from its convolution) joins the group before it.

    Raises:
        ModelError: The network has no linear classifier.
    """
    shapes = {name: parameter.shape for name, parameter in network.named_parameters()}
    head = find_classifier_parameters(network)
    groups: list[list[str]] = []
    for names in _find_coarse_groups(network):
        backbone = [name for name in names if name not in head]
        if not backbone:
            continue
        if groups and all(len(shapes[name]) <= 1 for name in backbone):
            groups[-1] += backbone
        else:
            groups.append(backbone)
    ordered = [sorted(head, key=list(shapes).index), *reversed(groups)]
    names = _name_groups([["head"], *ordered[1:]])
    return tuple(
        LayerGroup(
            name,
            tuple(group),
            sum(shapes[parameter].numel() for parameter in group),
            frozenset(parameter for parameter in group if len(shapes[parameter]) <= 1),
        )
        for name, group in zip(names, ordered, strict=True)
    )


def find_classifier_parameters(network: nn.Module) -> set[str]:
    """Return the names of the classifier's parameters.

    Raises:
        ModelError: The network has none.
    """
    classifier = network.get_classifier()  # type: ignore[operator]
    modules: Iterable[nn.Module] = (
        classifier if isinstance(classifier, tuple | list) else (classifier,)
    )
    owned = {id(parameter) for module in modules for parameter in module.parameters()}
    names = {name for name, parameter in network.named_parameters() if id(parameter) in owned}
    if not names:
        raise ModelError(
            f"{type(network).__name__} has no linear classifier to train. Choose another backbone."
        )
    return names


def assign_module_groups(
    network: nn.Module, groups: Sequence[LayerGroup]
) -> dict[str, frozenset[int]]:
    """Return for each module the numbers of the groups that its parameters, or neighbours, are in.

    A module without parameters (dropout, activation) goes with the parameters before it, but with
    the head where the head comes next.
    """
    group_of = {
        name: number for number, group in enumerate(groups) for name in group.parameter_names
    }
    below: dict[str, set[int]] = {name: set() for name, _ in network.named_modules()}
    for parameter, number in group_of.items():
        parts = parameter.split(".")
        for end in range(len(parts)):
            below[".".join(parts[:end])].add(number)
    return _assign_parameterless_modules(network, below, last_group=len(groups) - 1)


def _assign_parameterless_modules(
    network: nn.Module, groups_below: Mapping[str, set[int]], *, last_group: int
) -> dict[str, frozenset[int]]:
    leaves = [n for n, module in network.named_modules() if next(module.children(), None) is None]
    before_head: set[str] = set()
    following = -1
    for name in reversed(leaves):
        parent = name.rpartition(".")[0]
        if groups_below[name]:
            following = min(groups_below[name])
        elif following == 0 and (parent == "" or groups_below[parent] == {0}):
            before_head.add(name)  # but not what ends a block of the backbone, as its drop path
    found: dict[str, frozenset[int]] = {}
    for name, module in network.named_modules():
        found[name] = frozenset({0} if name in before_head else groups_below[name] or {last_group})
        if groups_below[name] and not any(True for _ in module.children()):
            last_group = min(groups_below[name])
    return found


def _find_coarse_groups(network: nn.Module) -> list[list[str]]:
    """Return timm's groups from the input on; top-level modules where a model defines none."""
    matcher = getattr(network, "group_matcher", None)
    if matcher is not None:
        try:
            grouped: Mapping[int, list[str]] = group_parameters(network, matcher(coarse=True))
        except (AssertionError, KeyError, TypeError, ValueError, NotImplementedError):
            grouped = {}
        if len(grouped) > 1:
            return [grouped[number] for number in sorted(grouped)]
    by_child: dict[str, list[str]] = {}
    for name, _ in network.named_parameters():
        by_child.setdefault(name.partition(".")[0], []).append(name)
    return list(by_child.values())


def _name_groups(groups: Sequence[Sequence[str]]) -> list[str]:
    """Return for each group the shortest module path that begins its first name and no other's."""
    firsts = [group[0].split(".") for group in groups]
    names = []
    for first in firsts:
        for length in range(1, len(first) + 1):
            prefix = first[:length]
            if sum(other[:length] == prefix for other in firsts) == 1:
                break
        names.append(".".join(prefix))
    return names
