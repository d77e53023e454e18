"""Description of a comparison: cases, weights, tools and seeds, from a YAML file or options."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

Metric = Literal["auto", "accuracy", "balanced_accuracy", "macro_f1"]


def _split_commas(value: Any) -> Any:
    return value.split(",") if isinstance(value, str) else value


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Case(_Entry):
    """A folder of images, and which of them are used.

    Attributes:
        name: Name in the results.
        folder: Class folders, or train and test, train and val, or train, val and test. ``val``
            is the test if there is none, and joins ``train`` otherwise.
        train_per_class: Maximum number of training images per class.
        ratio: Imbalance ratio of the training images, with an exponential profile.
        test_per_class: Number of test images per class.
        test_fraction: Fraction of the test in a folder without splits, unless
            ``test_per_class`` is set.
        metric: Metric whose error is compared; auto: macro_f1 above the imbalance ratio at which
            finetune selects its epochs by it, else accuracy.
    """

    name: str
    folder: Path
    train_per_class: int | None = Field(None, ge=2)
    ratio: float | None = Field(None, ge=1)
    test_per_class: int | None = Field(None, ge=1)
    test_fraction: float = Field(0.2, gt=0, lt=1)
    metric: Metric = "auto"

    @property
    def selection(self) -> str:
        """Text that identifies the images drawn from the folder."""
        values = {
            "train_per_class": self.train_per_class,
            "ratio": self.ratio,
            "test_per_class": self.test_per_class,
            "test_fraction": None if self.test_per_class else self.test_fraction,
        }
        return " ".join(f"{name}={value:g}" for name, value in values.items() if value is not None)


class Weights(_Entry):
    """A weights file, and the network that it belongs to.

    Attributes:
        backbone: Name in timm.
        file: State dict that torch.load reads with ``weights_only``.
        name: Name in the results; empty: that of the backbone.
        kwargs: Arguments of ``timm.create_model`` (``model.kwargs`` of finetune).
        pretrained_cfg: Overrides of the preprocessing (``model.pretrained_cfg`` of finetune).
    """

    backbone: str
    file: Path
    name: str = ""
    kwargs: dict[str, Any] = Field(default_factory=dict)
    pretrained_cfg: dict[str, Any] = Field(default_factory=dict)

    @property
    def label(self) -> str:
        """Name in the results."""
        return self.name or self.backbone


class Study(_Entry):
    """All runs of a comparison: each tool on each case with all weights and seeds.

    Attributes:
        cases: Image folders.
        weights: Weights files.
        tools: Names of tools.
        seeds: Seeds of the drawn images and of the tools.
        settings: Config keys for all runs of finetune.
        image_size: Side of the images in pixels for all tools; None: the default of each.
        epochs: Epochs for all tools; None: the default of each.
    """

    cases: tuple[Case, ...] = ()
    weights: tuple[Weights, ...] = ()
    tools: Annotated[tuple[str, ...], BeforeValidator(_split_commas)] = (
        "finetune", "finetune-probe", "fastai-4", "fastai-8",
    )  # fmt: skip
    seeds: Annotated[tuple[int, ...], BeforeValidator(_split_commas)] = (0, 1, 2)
    settings: tuple[str, ...] = ()
    image_size: int | None = Field(None, ge=8)
    epochs: int | None = Field(None, ge=1)

    @model_validator(mode="after")
    def _check_names(self) -> "Study":
        for kind, names in (
            ("case", [case.name for case in self.cases]),
            ("weights", [weights.label for weights in self.weights]),
        ):
            if twice := sorted({name for name in names if names.count(name) > 1}):
                raise ValueError(f"{kind} named twice: {', '.join(twice)}; give them other names")
        return self


def load_study(
    file: Path | None,
    *,
    cases: Sequence[str] = (),
    weights: Sequence[str] = (),
    others: Mapping[str, Any] | None = None,
) -> Study:
    """Return the study of a YAML file, in which options replace values.

    Args:
        file: YAML file with the fields of ``Study``; relative paths are relative to it.
        cases: ``NAME=FOLDER``, names of cases of the file, or YAML mappings.
        weights: ``BACKBONE=FILE``, names of weights of the file, or YAML mappings.
        others: Further fields of ``Study``; None keeps the value of the file.

    Raises:
        SystemExit: If a value is invalid.
    """
    content = _read_yaml(file) if file is not None else {}
    content |= {name: value for name, value in (others or {}).items() if value is not None}
    for name, entries in (("cases", cases), ("weights", weights)):
        if entries:
            content[name] = [_parse_entry(text, content.get(name, []), name) for text in entries]
    try:
        return Study.model_validate(content)
    except ValidationError as error:
        lines = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
        raise SystemExit(f"Invalid study {file or ''}:\n  " + "\n  ".join(lines)) from None


_Yaml = TypeVar("_Yaml")


def _read_yaml(file: Path) -> dict[str, Any]:
    """Return a YAML file's mapping, with paths resolved against its folder."""
    content = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    if not isinstance(content, dict):
        raise SystemExit(f"{file} is no mapping; it needs the keys cases and weights")
    for entries, key in (("cases", "folder"), ("weights", "file")):
        for entry in content.get(entries, []):
            if isinstance(entry, dict) and isinstance(entry.get(key), str):
                entry[key] = file.parent / Path(entry[key]).expanduser()
    return content


def _parse_entry(text: str, known: Sequence[Mapping[str, Any]], kind: str) -> Mapping[str, Any]:
    """Return the entry that a name, ``KEY=PATH`` or a YAML mapping stands for."""
    if text.lstrip().startswith("{"):
        entry = yaml.safe_load(text)
        assert isinstance(entry, dict), text
        return entry
    name, separator, path = text.partition("=")
    if separator:
        return {"name": name, "folder": path} if kind == "cases" else {
            "backbone": name, "file": path,
        }  # fmt: skip
    found = [e for e in known if text in (e.get("name"), e.get("backbone"))]
    if not found:
        names = ", ".join(str(e.get("name") or e.get("backbone")) for e in known) or "none"
        raise SystemExit(f"No {kind} named '{text}' in the study ({names}); or write NAME=PATH")
    return found[0]
