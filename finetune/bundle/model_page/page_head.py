"""Front matter of a README in YAML, by which the Hugging Face hub lists and finds a model."""

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from finetune.bundle.model_card import ModelCard
from finetune.bundle.model_page.weights_origin import HUB_LICENSES, WeightsOrigin

_DATASETS = {
    "val": "validation images",
    "test": "test images",
    "out_of_fold": "out-of-fold images of the cross-validation",
}
_SPLITS = {"val": "validation", "test": "test", "out_of_fold": "train"}
_METRICS = {
    "loss": ("log_loss", "log loss"),
    "accuracy": ("accuracy", "accuracy"),
    "balanced_accuracy": ("balanced_accuracy", "balanced accuracy"),
    "macro_f1": ("f1", "macro F1"),
    "micro_f1": ("f1", "micro F1"),
    "mean_average_precision": ("average_precision", "mean average precision"),
    "micro_average_precision": ("average_precision", "micro average precision"),
    "rarest_third_recall": ("recall", "recall of the rarest third of the classes"),
    "top5_accuracy": ("accuracy", "top-5 accuracy"),
}
"""Metric of a card to the identifier of the hub and the name that is shown."""

_WITHOUT_LEAKS = "_without_leaks"


def build_page_head(
    card: ModelCard,
    origin: WeightsOrigin,
    *,
    title: str,
    library: str = "timm",
    own_license: str | None = None,
) -> str:
    """Return the head with its delimiters.

    Args:
        card: Model card.
        origin: Origin of the backbone's weights.
        title: Name of the model in its measured results.
        library: Library that loads the model: "timm", "transformers", "onnx" or "finetune".
        own_license: Licence of the model; None for that of the backbone's weights.
    """
    from huggingface_hub import ModelCardData

    results = list(_iter_results(card))
    licence, license_name = _name_license(own_license or origin.license or "")
    data = ModelCardData(
        library_name=library,
        pipeline_tag="image-classification",
        tags=["image-classification", library, "finetune-vision"],
        base_model=origin.base_model,
        metrics=sorted({result.metric_type for result in results}) or None,
        model_name=title if results else None,
        eval_results=results or None,
        license=licence,
        license_name=license_name,
    )
    return f"---\n{data.to_yaml()}\n---\n"


def _name_license(name: str) -> tuple[str, str | None]:
    """Return a licence as the hub writes it, and the name of one that it does not list."""
    if name.lower() in HUB_LICENSES:
        return name.lower(), None
    slug = re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-")
    return "other", slug or "unknown"


def _iter_results(card: ModelCard) -> Iterator[Any]:
    """Yield the measured metrics as results of the hub's format, those of each split together."""
    from huggingface_hub import EvalResult

    evaluations = card.facts.get("evaluations") or {}
    for split, metrics in (card.facts.get("metrics") or {}).items():
        details: Mapping[str, Any] = evaluations.get(split) or {}
        own, num_images = split.removesuffix(_WITHOUT_LEAKS), details.get("num_images")
        dataset = _DATASETS.get(own, own)
        if own != split:
            dataset += " without leaked ones"
        for key, value in metrics.items():
            if value is None or not math.isfinite(value):
                continue
            kind, name = _METRICS.get(key, (key, key.replace("_", " ")))
            interval = details.get("accuracy_interval") if key == "accuracy" else None
            yield EvalResult(
                task_type="image-classification",
                task_name="Image Classification",
                dataset_type="imagefolder",
                dataset_name=dataset,
                dataset_split=_SPLITS.get(own, own),
                dataset_args=None if num_images is None else {"num_images": num_images},
                metric_type=kind,
                metric_name=name,
                metric_value=value,
                metric_args=None if interval is None else {"interval_95_percent": interval},
            )
