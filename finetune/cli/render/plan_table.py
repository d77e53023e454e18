"""Text form of a plan, of its cost and of the result of a linear probe."""

from collections.abc import Mapping, Sequence
from typing import Any

from finetune.cli.render.networks.stage_lines import describe_stages
from finetune.data.layouts.name_groups import describe_groups
from finetune.units import (
    format_bytes,
    format_count,
    format_duration,
    format_folds,
    format_millions,
    format_percent,
    format_scientific,
    format_value,
    is_number,
)

_MAX_NAMED_CLASSES = 6

_HEAD_REBALANCING_DESCRIPTIONS = {
    "crt": "classifier re-trained with balanced classes after the last epoch",
    "tau_norm": "classifier weights tau-normalized after the last epoch",
    "post_hoc": "logits adjusted to a uniform class prior",
}


def build_plan_rows(plan: Mapping[str, Any]) -> dict[str, str]:
    """Return the name and the text of each row of a plan.

    Args:
        plan: Plan as ``build_plan`` returns it, with "cost" where it was measured.
    """
    data, model, training = plan["data"], plan["model"], plan["training"]
    counts = ", ".join(f"{n:,} {split}" for split, n in data["num_images"].items() if n)
    rows = {
        "images": f"{counts}; {_describe_classes(data)}, imbalance ratio "
        f"{data['imbalance_ratio']:g}",
        **({"groups": describe_groups(data["groups"])} if data.get("groups") else {}),
        **_describe_pixel_values(data),
        "model": f"{model['backbone']}, {format_millions(model['num_parameters'])} parameters, "
        f"{model['image_size']} px input",
        "weights": _describe_weights(model),
        **_describe_probe(plan["probe"]),
        **_describe_training(plan),
        "imbalance": _describe_imbalance(plan),
        "monitor": f"val/{training['monitor']}; best epoch by val/{training['checkpoint_monitor']}",
        "run folder": plan["run_dir"],
    }
    if plan["overrides"]:
        rows["overrides"] = ", ".join(
            # digits of a number as they were given
            f"{key}={value if is_number(value) else format_value(value)}"
            for key, value in plan["overrides"].items()
        )
    if "cost" in plan:
        rows.update(_describe_cost(plan["cost"]))
    return rows


def format_bits(files: Mapping[str, Any], pixel_range: str) -> str:
    """Return the largest value of 16-bit files, their bits, and the range that they are read with.

    Args:
        files: Values of ``DatasetBits.to_json``.
        pixel_range: Value of ``data.pixel_range``.
    """
    shown = f"{format_count(files['num_images'], 'image')} of 16 bits"
    return (
        f"up to {files['max_value']:,} in {shown}: {files['num_bits']} bits "
        f"(data.pixel_range={pixel_range})"
    )


def describe_probe_result(result: Mapping[str, Any]) -> list[str]:
    """Return the lines that report the result of a linear probe.

    Args:
        result: Result as ``ProbeResult.to_json`` returns it.
    """
    num_cached = result["num_images"] - result["num_images_computed"]
    cached = (
        f" ({num_cached:,} of {format_count(result['num_images'], 'image')} had cached features)"
        if num_cached
        else ""
    )
    mean_average_precision = result.get("cross_validated_mean_average_precision")
    score = f"{format_percent(result['cross_validated_accuracy'])} cross-validated accuracy"
    if mean_average_precision is not None:
        score = f"{format_percent(mean_average_precision)} cross-validated mean average precision"
    lines = [
        f"Linear probe: {score} on {format_count(result['num_train_images'], 'training image')} "
        f"({_format_folds(result['folds'])}; "
        f"L2 {format_scientific(result['l2_penalty'], digits=1)}), "
        f"{format_duration(result['seconds'])}{cached}"
    ]
    lines += describe_stages(result.get("stages"))
    if result["last_stage_epochs"] is None:
        return lines
    head_accuracy = format_percent(result["head_metrics"]["accuracy"])
    if result["last_stage_epochs"]:
        lines.append(
            f"Last stage: {format_percent(result['metrics']['accuracy'])} validation accuracy "
            f"after epoch {result['last_stage_epochs']}, {head_accuracy} with the linear head alone"
        )
    else:
        lines.append(
            f"Last stage: no epoch improved on the linear head ({head_accuracy} validation "
            f"accuracy); its weights were left unchanged"
        )
    return lines


def _format_folds(folds: Mapping[str, Any]) -> str:
    return format_folds(
        folds["num_folds"],
        num_held_out=folds["num_held_out_folds"],
        num_groups=folds["num_groups"],
    )


def _describe_classes(data: Mapping[str, Any]) -> str:
    """Return the number of classes, or of labels and how many an image has."""
    labels = data.get("labels_per_image")
    if labels is None:
        return format_count(len(data["classes"]), "class")
    return f"{format_count(len(data['classes']), 'label')}, {labels:.3g} per image (multi-label)"


def _describe_pixel_values(data: Mapping[str, Any]) -> dict[str, str]:
    files = data["sixteen_bit_files"]
    if files is not None:
        return {"pixel values": format_bits(files, data["pixel_range"])}
    is_set = data["pixel_range"] not in ("auto", "full")
    return {"pixel values": f"data.pixel_range={data['pixel_range']}"} if is_set else {}


def _describe_weights(model: Mapping[str, Any]) -> str:
    if not model["loaded_fraction"]:
        return str(model["weights"])
    loaded = format_percent(model["loaded_fraction"])
    return f"{model['weights']} ({loaded} of the backbone parameters loaded)"


def _describe_probe(probe: Mapping[str, Any] | None) -> dict[str, str]:
    if probe is None:
        return {}
    views = ["image"]
    if probe["flipped"] is not False:
        is_open = probe["flipped"] is None
        views.append(f"horizontal flip{' if measured to help' if is_open else ''}")
    if probe["num_crops"]:
        views.append(format_count(probe["num_crops"], "crop"))
    role = "" if probe["probe_only"] else "; baseline and initial head for fine-tuning"
    folds = f"; {_format_folds(probe['folds'])}"
    rows = {"probe": f"linear probe on frozen features ({_join(views)}){folds}{role}"}
    if last_stage := probe["last_stage"]:
        groups = _join(list(reversed(last_stage["groups"])))
        rates = _join([format_scientific(lr) for lr in reversed(last_stage["lr"].values())])
        rows["last stage"] = (
            f"{groups} at learning rates {rates}, "
            f"{format_count(last_stage['epochs'], 'epoch')} on cached activations "
            f"({format_bytes(1e9 * last_stage['activations_gb'])})"
        )
    return rows


def _describe_training(plan: Mapping[str, Any]) -> dict[str, str]:
    training, probe = plan["training"], plan["probe"]
    world_size = training["world_size"]
    devices = training["accelerator"] + (f" x {world_size}" if world_size > 1 else "")
    hardware = f"{training['precision']} on {devices}"
    if probe and probe["probe_only"]:
        stages = ["logistic regression (L-BFGS)"]
        if probe["last_stage"]:
            stages.append(
                f"{training['optimizer']}, {training['lr_schedule']} schedule, batch size "
                f"{training['batch_size']}"
            )
        return {"training": f"{', then '.join(stages)}, {hardware}"}
    return {
        "training": f"{format_count(training['epochs'], 'epoch')} of "
        f"{format_count(training['steps_per_epoch'], 'step')}, batch size "
        f"{training['batch_size']}, {training['optimizer']}, {training['lr_schedule']} schedule, "
        f"{hardware}",
        "pixel cache": _describe_pixel_cache(plan["cache"]),
        "augment": _describe_augmentation(training),
    }


def _describe_pixel_cache(cache: Mapping[str, Any]) -> str:
    if cache["folder"] is None:
        return f"none, images are decoded in every epoch ({cache['disabled_reason']})"
    side = cache["shorter_side_px"]
    form = "preprocessed" if side is None else f"shorter side {side} px"
    size = format_bytes(1e9 * cache["total_gb"])
    reused = "" if cache["new_gb"] else " (already cached)"
    return f"{form}, {size}{reused} in {cache['folder']}"


def _describe_augmentation(training: Mapping[str, Any]) -> str:
    rare: Sequence[str] = training["rare_classes"]
    settings = {key: training[key] for key in ("hflip", "vflip", "rot90", "min_crop_scale")}
    given = [f"{key} {value}" for key, value in settings.items() if value != "auto"]
    preset = ", ".join([str(training["augment"]), *given])
    if not rare:
        return preset
    names = ", ".join(rare) if len(rare) <= _MAX_NAMED_CLASSES else f"{len(rare)} rare classes"
    return f"{preset}; {training['rare_class_preset']} for {names}"


def _describe_post_hoc_strength(strength: float | str | None) -> str:
    """Return the strength of an adjustment that is not in full."""
    if strength in (None, 1):
        return ""
    if strength == "held_out":
        return ", with a strength of 0 to 1 that is chosen on held-out images after training"
    return f", with strength {strength:g}"


def _describe_imbalance(plan: Mapping[str, Any]) -> str:
    """Return the strategy, and the sampler, class weights, loss and head step that it sets."""
    training, probe = plan["training"], plan["probe"]
    parts = []
    if training["sampler"] != "uniform":
        num_images = plan["data"]["num_images"]["train"]
        epoch_size = (
            f" ({training['images_per_epoch']:,} of {num_images:,} images per epoch)"
            if training["images_per_epoch"] != num_images
            else ""
        )
        parts.append(f"sampler {training['sampler']}{epoch_size}")
    if training["class_weights"] != "none":
        start = training["class_weights_start_epoch"]
        since = f" from epoch {start}" if start > 1 else ""
        parts.append(f"class weights {training['class_weights']}{since}")
    if training["loss"] not in ("cross_entropy", "bce"):
        is_other = probe is not None and probe["loss"] != training["loss"]
        probe_loss = f" (probe: {probe['loss']})" if is_other else ""
        parts.append(f"loss {training['loss']}{probe_loss}")
    if training["head_rebalancing"] != "none":
        description = _HEAD_REBALANCING_DESCRIPTIONS[training["head_rebalancing"]]
        parts.append(description + _describe_post_hoc_strength(training["post_hoc_strength"]))
    return ": ".join(filter(None, (training["imbalance"], "; ".join(parts))))


def _describe_cost(cost: Mapping[str, Any]) -> dict[str, str]:
    memory = cost["memory_gb"]
    names = ("parameters", "gradients", "optimizer", "activations")
    parts = ", ".join(f"{name} {format_bytes(1e9 * memory[name])}" for name in names)
    free = "" if memory["free"] is None else f"; {format_bytes(1e9 * memory['free'])} free"
    phases = [
        f"{_format_epochs(phase)} {format_duration(phase['seconds'])} at "
        f"{_format_rate(phase['images_per_second'])} images/s"
        for phase in cost["phases"]
    ]
    if cost["cache_fill_seconds"] >= 1:
        phases.insert(0, f"filling the pixel cache {format_duration(cost['cache_fill_seconds'])}")
    return {
        "memory": f"{format_bytes(1e9 * memory['total'])} per process at "
        f"{format_count(cost['micro_batch_size'], 'image')} per step ({parts}){free}",
        "time": f"about {format_duration(cost['seconds'])}: {', '.join(phases)}",
        **_describe_train_eval(cost),
    }


def _describe_train_eval(cost: Mapping[str, Any]) -> dict[str, str]:
    """Return what it costs to measure training images as validation images are; none without."""
    if not cost.get("train_eval_images"):
        return {}
    fractions = sorted(phase["train_eval_fraction"] for phase in cost["phases"])
    low, high = (format_percent(value, decimals=0) for value in (fractions[0], fractions[-1]))
    seconds = sum(phase["train_eval_seconds"] for phase in cost["phases"])
    images = format_count(cost["train_eval_images"], "training image")
    share = low if low == high else f"{low} to {high}"
    return {
        "train eval": f"{images} measured as validation is after each epoch: "
        f"{format_duration(seconds)} of that, {share} more (trainer.train_eval=off: none)"
    }


def _format_epochs(phase: Mapping[str, Any]) -> str:
    first, last = phase["first_epoch"], phase["last_epoch"]
    return f"epoch {first}" if first == last else f"epochs {first}-{last}"


def _join(names: Sequence[str]) -> str:
    """Return names with commas and a final "and"."""
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def _format_rate(rate: float) -> str:
    """Return a rate in three digits, in full from 100 on."""
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"
