"""A plan, its costs and its probe in words."""

from collections.abc import Mapping
from typing import Any

_MAX_NAMED_CLASSES = 6


_HEAD_STEP_DESCRIPTIONS = {
    "crt": "the classifier is fitted again at the end, to all classes alike",
    "tau_norm": "the norms of the classifier's weights are evened out at the end",
    "post_hoc": "answers are adjusted to classes of equal size",
}


def build_plan_rows(plan: Mapping[str, Any]) -> dict[str, str]:
    """Return what is about to happen, by name."""
    data, model, training = plan["data"], plan["model"], plan["training"]
    images = ", ".join(f"{n} {split}" for split, n in data["images"].items() if n)
    loaded = (
        f"{model['weights']}, {model['loaded_fraction']:.1%} of the backbone loaded"
        if model["loaded_fraction"]
        else model["weights"]
    )
    processes = training["processes"]
    where = training["accelerator"] + (f" x {processes}" if processes > 1 else "")
    rows = {
        "images": f"{images}; {len(data['classes'])} classes, largest/smallest "
        f"{data['imbalance_ratio']:g}",
        "model": f"{model['backbone']}, {format_count(model['parameters'])} parameters, "
        f"{model['image_size']} px",
        "weights": loaded,
        **_describe_probe(plan["probe"]),
        **_describe_training(plan, where),
        "imbalance": _describe_imbalance(plan),
        "best by": f"val/{training['monitor']}",
        "run": plan["run_dir"],
    }
    if plan["changed"]:
        rows["changed"] = ", ".join(f"{key}={value}" for key, value in plan["changed"].items())
    if "cost" in plan:
        rows.update(_describe_cost(plan["cost"]))
    return rows


def format_count(number: int) -> str:
    """Return how many in a few digits."""
    return f"{number / 1e6:.1f} M" if number >= 1e6 else f"{number:,}"


def _describe_pixel_cache(cache: Mapping[str, Any]) -> str:
    """Say where training images are read from."""
    if cache["folder"] is None:
        return f"decoded in every epoch; no cache: {cache['disabled_reason']}"
    side = cache["shorter_side_px"]
    form = "ready to use" if side is None else f"at {side} px"
    new = cache["new_gb"]
    cost = f"{cache['total_gb']:.2g} GB" + ("" if new else ", there already")
    return f"decoded once, kept {form}: {cost} in {cache['folder']}"


def _describe_probe(probe: Mapping[str, Any] | None) -> dict[str, str]:
    if probe is None:
        return {}
    views = "each image, also in a mirror" if probe["flipped"] else "each image"
    if probe["num_crops"]:
        views += f", and {probe['num_crops']} part{'s' if probe['num_crops'] > 1 else ''} of it"
    then = "" if probe["probe_only"] else "; what fine-tuning begins with and must beat"
    said = {"probe": f"a head fitted to what the frozen backbone says of {views}{then}"}
    if tail := probe["last_stage"]:
        groups = " and ".join(reversed(tail["groups"]))
        rates = " and ".join(f"{rate:.2g}" for rate in reversed(tail["lr"].values()))
        said["deeper"] = (
            f"then {groups} at rates of {rates}, {tail['epochs']} passes over kept maps of what "
            f"lies before them ({tail['activations_gb']:.2g} GB)"
        )
    return said


def describe_probe_result(result: Mapping[str, Any]) -> list[str]:
    """Return what the frozen backbone came to, and from how many answers."""
    known = result["images"] - result["num_images_computed"]
    lines = [
        f"The probe took {_format_duration(result['seconds'])} for {result['images']} images"
        f"{f', {known} of them known from before' if known else ''}: "
        f"{result['cross_validated_accuracy']:.4f} of the training images come out right when left out "
        f"(penalty {result['penalty']:.1g})."
    ]
    alone = result["head_metrics"]["accuracy"]
    if result["last_stage_epochs"]:
        lines.append(
            f"The last layers, after pass {result['last_stage_epochs']} over the kept maps: "
            f"{result['metrics']['accuracy']:.4f} of the validation images come out right, "
            f"{alone:.4f} with the head alone."
        )
    elif result["last_stage_epochs"] is not None:
        lines.append(
            f"No pass over the kept maps beat the head alone ({alone:.4f} of the validation "
            f"images): the last layers stay as they were."
        )
    return lines


def _describe_training(plan: Mapping[str, Any], devices: str) -> dict[str, str]:
    training = plan["training"]
    how = f"{training['precision']} on {devices}"
    if plan["probe"] and plan["probe"]["probe_only"]:
        then = ""
        if plan["probe"]["last_stage"]:
            optimizer, schedule = training["optimizer"], training["lr_schedule"]
            then = f", then {optimizer}, {schedule}, batches of {training['batch_size']}"
        return {"training": f"logistic regression until nothing improves{then}, {how}"}
    return {
        "training": f"{training['epochs']} epochs of {training['steps_per_epoch']} x "
        f"{training['batch_size']} images, {training['optimizer']}, {training['lr_schedule']}, "
        f"{how}",
        "pixels": _describe_pixel_cache(plan["cache"]),
        "augment": _describe_augmentation(training),
    }


def _describe_augmentation(training: Mapping[str, Any]) -> str:
    """Say what happens to training images, and to which of them something else."""
    rare: list[str] = training["rare_classes"]
    if not rare:
        return str(training["augment"])
    names = ", ".join(rare) if len(rare) <= _MAX_NAMED_CLASSES else f"{len(rare)} rare classes"
    return f"{training['augment']}; {training['rare_class_preset']} for {names}"


def _describe_imbalance(plan: Mapping[str, Any]) -> str:
    """Say what is done about classes of unequal size, and where."""
    training, probe = plan["training"], plan["probe"]
    said = []
    if training["sampler"] != "uniform":
        said.append(f"images by {training['sampler']}")
        num_images = plan["data"]["images"]["train"]
        if training["images_per_epoch"] != num_images:
            said[-1] += f", {training['images_per_epoch']} of {num_images} an epoch"
    if training["class_weights"] != "none":
        said.append(f"class weights {training['class_weights']}")
        if training["class_weights_start_epoch"] > 1:
            said[-1] += f" from epoch {training['class_weights_start_epoch']} on"
    if training["loss"] != "cross_entropy":
        said.append(f"loss {training['loss']}")
        if probe is not None and probe["loss"] != training["loss"]:
            said[-1] += f" (the probe: {probe['loss']})"
    if training["head_rebalancing"] != "none":
        said.append(_HEAD_STEP_DESCRIPTIONS[training["head_rebalancing"]])
    return ": ".join(filter(None, (training["imbalance"], "; ".join(said))))


def _describe_cost(cost: Mapping[str, Any]) -> dict[str, str]:
    """Say what memory and time a run will take."""
    memory = cost["memory_gb"]
    parts = ("parameters", "gradients", "optimizer", "activations")
    free = "" if memory["free"] is None else f"; {memory['free']:.3g} GB are free"
    phases = [
        f"{_format_duration(phase['seconds'])} for {_format_epochs(phase)} at "
        f"{phase['images_per_second']:.3g} images/s"
        for phase in cost["phases"]
    ]
    if cost["cache_fill_seconds"] >= 1:
        phases.insert(0, f"{_format_duration(cost['cache_fill_seconds'])} to decode")
    return {
        "memory": f"{memory['total']:.2g} GB in each process for {cost['micro_batch_size']} images ("
        + ", ".join(f"{memory[part]:.2g} {part}" for part in parts)
        + f"){free}",
        "time": f"about {_format_duration(cost['seconds'])}: {', '.join(phases)}",
    }


def _format_epochs(phase: Mapping[str, Any]) -> str:
    first, last = phase["first_epoch"], phase["last_epoch"]
    return f"epoch {first}" if first == last else f"epochs {first}-{last}"


def _format_duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
