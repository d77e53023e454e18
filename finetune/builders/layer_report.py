"""Table of the layers of a run: output, parameters, multiply-adds and activations of each."""

from collections.abc import Sequence
from operator import itemgetter
from typing import Any

from finetune.builders.cost import build_step_profiler
from finetune.builders.run import Training, get_micro_batch_size
from finetune.errors import OutOfMemoryError
from finetune.models.classifier import ImageClassifier
from finetune.models.costs.layer_costs import LOSS, LayerCost
from finetune.models.layer_groups import assign_module_groups
from finetune.system.hardware import explain_out_of_memory, is_out_of_memory, release_memory

_NUM_LARGEST = 3


def describe_layers(training: Training) -> dict[str, Any]:
    """Return the costs of the layers of a run as JSON values, measured on a copy of its network.

    The activations of ``layers`` are those of the phase that trains most groups, at the batch of a
    process; ``phases`` has their sum in each phase. ``fixed_bytes`` are kept tensors whose
    size does not depend on the batch, such as weights in another precision.

    Raises:
        OutOfMemoryError: Not even a few images fit into the memory.
    """
    depths = sorted({phase.depth for phase in training.phases}, reverse=True)
    try:
        profiler = build_step_profiler(training)
        by_depth = {depth: profiler.measure_layers(depth) for depth in depths}
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemoryError(
            f"{explain_out_of_memory(error)} Not even a few images fit. Use a smaller "
            f"--image-size or --backbone."
        ) from None
    finally:
        release_memory()
    batch_size = get_micro_batch_size(training)
    classifier = training.module.classifier
    rows = _describe_rows(classifier, by_depth[depths[0]], batch_size)
    return {
        "image_size": list(profiler.images.shape[1:3]),
        "batch_size": batch_size,
        "precision": training.config.trainer.precision,
        "layers": rows,
        "totals": _sum_rows(rows),
        "largest": {
            key: _find_largest(rows, key)
            for key in ("num_parameters", "num_macs", "activation_bytes")
        },
        "phases": []
        if training.is_probe_only
        else [
            {
                "first_epoch": phase.first_epoch + 1,
                "last_epoch": phase.last_epoch + 1,
                "groups": [group.name for group in classifier.groups[: phase.depth]],
                "activation_bytes": sum(
                    batch_size * layer.activation_bytes for layer in by_depth[phase.depth]
                ),
                "fixed_bytes": sum(layer.fixed_bytes for layer in by_depth[phase.depth]),
            }
            for phase in training.phases
        ],
    }


def _describe_rows(
    classifier: ImageClassifier, layers: Sequence[LayerCost], batch_size: int
) -> list[dict[str, Any]]:
    """Return the layers with any cost, in the order in which they run."""
    groups = classifier.groups
    indices = assign_module_groups(classifier.network, groups)
    rows = []
    for layer in layers:
        if not (layer.num_parameters or layer.num_macs or layer.compute_bytes(batch_size)):
            continue
        members = indices.get(layer.name, frozenset())
        rows.append(
            {
                "name": layer.name or "(network)",
                "kind": layer.kind,
                # of parameters and sums of the network itself, and of the loss, there is none
                "group": groups[max(members)].name if layer.name not in ("", LOSS) else None,
                "output_shape": list(layer.output_shape),
                "num_parameters": layer.num_parameters,
                "num_macs": layer.num_macs,
                "num_activations": layer.num_activations,
                "activation_bytes": batch_size * layer.activation_bytes,
                "fixed_bytes": layer.fixed_bytes,
            }
        )
    return rows


def _sum_rows(rows: Sequence[dict[str, Any]]) -> dict[str, int]:
    keys = ("num_parameters", "num_macs", "num_activations", "activation_bytes", "fixed_bytes")
    return {key: sum(row[key] for row in rows) for key in keys}


def _find_largest(rows: Sequence[dict[str, Any]], key: str) -> list[dict[str, Any]]:
    """Return the layers with most of a cost and their fractions of it, largest first."""
    total = sum(row[key] for row in rows)
    largest = sorted(rows, key=itemgetter(key), reverse=True)[:_NUM_LARGEST]
    return [
        {"name": row["name"], "fraction": round(row[key] / total, 4)} for row in largest if row[key]
    ]
