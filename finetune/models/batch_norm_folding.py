"""Frozen copy of a network for inference, with BatchNorm folded into the convolutions before it.

In eval mode BatchNorm is a fixed scale and shift of each channel, which the weight and the bias of
a preceding convolution can absorb: a layer less to read and write. The pairs are found in the
torch.fx graph, where the only use of a convolution's output is a BatchNorm.
"""

import operator
from collections import Counter
from collections.abc import Sequence

from timm.layers.conv2d_same import Conv2dSame
from timm.layers.norm_act import BatchNormAct2d
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from finetune.models.classifier import has_batch_norm
from finetune.models.graph_split import build_graph_module, trace_network
from finetune.models.stage_outputs import Stage, add_outputs

_CONVOLUTIONS = (nn.Conv2d, Conv2dSame)
_BATCH_NORMS = (nn.BatchNorm2d, BatchNormAct2d)


def fold_batch_norm(
    network: nn.Module, *, inner_node: str | None = None, stages: Sequence[Stage] = ()
) -> fx.GraphModule | None:
    """Return a copy of a network whose BatchNorm layers are folded into convolutions.

    The outputs are the same up to rounding, those of the inner node, too. Layers that are not
    folded are the network's own; the folded weights are copies, to which later changes of the
    network do not apply.

    Args:
        network: Module of images (B, C, H, W), in eval mode.
        inner_node: Name of a graph node, as in ``SplitNetwork``, whose output is returned, too.
        stages: Stages whose means are returned, too, as by ``observe_stages``.

    Returns:
        Module from images to the network's output, with an inner node or stages to a tuple of its
        output and theirs; None where the network cannot be traced or nothing can be folded.
    """
    assert not network.training
    trace = trace_network(network) if has_batch_norm(network) else None
    if trace is None:
        return None
    traced, graph = trace
    add_outputs(graph, network, inner_node=inner_node, stages=stages)
    layers = dict(network.named_modules())
    _remove_identities(graph, layers)
    folded: dict[str, nn.Module] = {}
    for conv, batch_norm in _find_pairs(graph, layers):
        name = str(conv.target)
        folded[name] = fuse_conv_bn_eval(layers[name], layers[str(batch_norm.target)])
        _replace_by_activation(batch_norm, layers)
    if not folded:
        return None
    _add_in_place(graph, {node for node in graph.nodes if node.target in folded})
    module = build_graph_module(network, traced, graph)
    for name, layer in folded.items():
        module.set_submodule(name, layer.requires_grad_(False))
    return module


def _remove_identities(graph: fx.Graph, layers: dict[str, nn.Module]) -> None:
    """Remove layers that do nothing, such as a stochastic depth of 0, and stand between others."""
    for node in list(graph.nodes):
        if node.op == "call_module" and type(layers.get(str(node.target))) is nn.Identity:
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)


def _find_pairs(graph: fx.Graph, layers: dict[str, nn.Module]) -> list[tuple[fx.Node, fx.Node]]:
    """Return the nodes of each convolution and of the BatchNorm that alone uses its output."""
    num_calls = Counter(node.target for node in graph.nodes if node.op == "call_module")

    def is_called_once(node: object, types: tuple[type[nn.Module], ...]) -> bool:
        # exactly these types: subclasses may compute their weights otherwise
        return (
            isinstance(node, fx.Node)
            and node.op == "call_module"
            and type(layers.get(str(node.target))) in types
            and num_calls[node.target] == 1
        )

    return [
        (node.args[0], node)
        for node in graph.nodes
        if is_called_once(node, _BATCH_NORMS)
        and layers[node.target].running_mean is not None
        and is_called_once(node.args[0], _CONVOLUTIONS)
        and len(node.args[0].users) == 1
    ]


def _replace_by_activation(batch_norm: fx.Node, layers: dict[str, nn.Module]) -> None:
    """Replace a BatchNorm by the layers that timm applies after it; by nothing for torch's own."""
    result = batch_norm.args[0]
    with batch_norm.graph.inserting_before(batch_norm):
        for name in ("drop", "act"):
            layer = layers.get(f"{batch_norm.target}.{name}")
            if layer is not None and not isinstance(layer, nn.Identity):
                result = batch_norm.graph.call_module(f"{batch_norm.target}.{name}", (result,))
    batch_norm.replace_all_uses_with(result)  # type: ignore[arg-type]
    batch_norm.graph.erase_node(batch_norm)


def _add_in_place(graph: fx.Graph, convolutions: set[fx.Node]) -> None:
    """Add residuals in place to the outputs of convolutions that nothing else uses.

    Networks add in place themselves, which tracing turns into sums with memory of their own.
    """
    for node in graph.nodes:
        if node.op == "call_function" and node.target is operator.add:
            summand = node.args[0]
            if summand in convolutions and len(summand.users) == 1:
                node.target = operator.iadd
