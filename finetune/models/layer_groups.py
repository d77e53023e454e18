"""Layer groups of any timm model: its own coarse groups, corrected, numbered from the head."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from timm.models import group_parameters
from torch import nn

from finetune.errors import ModelError


@dataclass(frozen=True, slots=True)
class LayerGroup:
    """Layers that are frozen and unfrozen together.

    Attributes:
        name: Path of its first module, unique in the network; "head" for the classifier.
        parameter_names: Names of its parameters in the network.
        num_parameters: Total number of their elements.
        vector_names: Names of the parameters with at most one dimension, such as biases; recorded
            here, since FSDP flattens all parameters.
    """

    name: str
    parameter_names: tuple[str, ...]
    num_parameters: int
    vector_names: frozenset[str]


def find_layer_groups(network: nn.Module) -> tuple[LayerGroup, ...]:
    """Return the layer groups from the classifier alone to the stem; each parameter is in one.

    timm's ``group_matcher(coarse=True)`` defines them, with two corrections: layers that share the
    classifier's group (a VGG's fc6 and fc7) become the last backbone group, and a group of vectors
    only (a BatchNorm separated from its convolution) joins the group before it.

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
    ids = {id(parameter) for module in modules for parameter in module.parameters()}
    names = {name for name, parameter in network.named_parameters() if id(parameter) in ids}
    if not names:
        raise ModelError(
            f"{type(network).__name__} has no linear classifier to train. Choose another backbone."
        )
    return names


def assign_module_groups(
    network: nn.Module, groups: Sequence[LayerGroup]
) -> dict[str, frozenset[int]]:
    """Return for each module the indices of the groups of its parameters, or of its neighbour's.

    A module without parameters (dropout, activation) is in the group of the parameters before it,
    but in the head's if the head comes next.
    """
    group_indices = {
        name: index for index, group in enumerate(groups) for name in group.parameter_names
    }
    groups_below: dict[str, set[int]] = {name: set() for name, _ in network.named_modules()}
    for parameter_name, index in group_indices.items():
        components = parameter_name.split(".")
        for end in range(len(components)):
            groups_below[".".join(components[:end])].add(index)
    return _assign_parameterless_modules(network, groups_below, last_group=len(groups) - 1)


def _assign_parameterless_modules(
    network: nn.Module, groups_below: Mapping[str, set[int]], *, last_group: int
) -> dict[str, frozenset[int]]:
    """Return the groups of each module, given those of the parameters below it."""
    leaves = [n for n, module in network.named_modules() if next(module.children(), None) is None]
    before_head: set[str] = set()
    next_group = -1
    for name in reversed(leaves):
        parent = name.rpartition(".")[0]
        if groups_below[name]:
            next_group = min(groups_below[name])
        elif next_group == 0 and (parent == "" or groups_below[parent] == {0}):
            # but not the last module of a backbone block, such as its drop path
            before_head.add(name)
    assigned: dict[str, frozenset[int]] = {}
    for name, module in network.named_modules():
        assigned[name] = frozenset(
            {0} if name in before_head else groups_below[name] or {last_group}
        )
        if groups_below[name] and not any(True for _ in module.children()):
            last_group = min(groups_below[name])
    return assigned


def _find_coarse_groups(network: nn.Module) -> list[list[str]]:
    """Return timm's groups in order from the input; top-level modules if the model defines none."""
    matcher = getattr(network, "group_matcher", None)
    if matcher is not None:
        try:
            grouped: Mapping[int, list[str]] = group_parameters(network, matcher(coarse=True))
        except (AssertionError, KeyError, TypeError, ValueError, NotImplementedError):
            grouped = {}
        if len(grouped) > 1:
            return [grouped[index] for index in sorted(grouped)]
    by_child: dict[str, list[str]] = {}
    for name, _ in network.named_parameters():
        by_child.setdefault(name.partition(".")[0], []).append(name)
    return list(by_child.values())


def _name_groups(groups: Sequence[Sequence[str]]) -> list[str]:
    """Return for each group the shortest prefix of its first name that no other group's has."""
    paths = [group[0].split(".") for group in groups]
    names = []
    for path in paths:
        for length in range(1, len(path) + 1):
            prefix = path[:length]
            if sum(other[:length] == prefix for other in paths) == 1:
                break
        names.append(".".join(prefix))
    return names
