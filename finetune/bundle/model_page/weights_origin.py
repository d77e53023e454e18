"""Origin of the backbone's weights: their repository on the hub, and their licence."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from finetune.bundle.model_card import ModelCard
from finetune.bundle.runtimes.model_paths import HUB_PREFIXES
from finetune.lookup import is_import_path

_HUB_LABEL = "hub ("

_NON_COMMERCIAL = (
    "-nc-", "-nc", "noncommercial", "non-commercial", "apple-amlr", "h-research", "intel-research",
    "deepfloyd-if",
)  # fmt: skip

HUB_LICENSES = frozenset(
    {
        "apache-2.0", "mit", "openrail", "bigscience-openrail-m", "creativeml-openrail-m",
        "bigscience-bloom-rail-1.0", "bigcode-openrail-m", "afl-3.0", "artistic-2.0", "bsl-1.0",
        "bsd", "bsd-2-clause", "bsd-3-clause", "bsd-3-clause-clear", "c-uda", "cc", "cc0-1.0",
        "cc-by-2.0", "cc-by-2.5", "cc-by-3.0", "cc-by-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0",
        "cc-by-nc-2.0", "cc-by-nc-3.0", "cc-by-nc-4.0", "cc-by-nd-4.0", "cc-by-nc-nd-3.0",
        "cc-by-nc-nd-4.0", "cc-by-nc-sa-2.0", "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0",
        "cdla-sharing-1.0", "cdla-permissive-1.0", "cdla-permissive-2.0", "wtfpl", "ecl-2.0",
        "epl-1.0", "epl-2.0", "etalab-2.0", "eupl-1.1", "eupl-1.2", "agpl-3.0",
        "fair-noncommercial-research-license", "gfdl", "gpl", "gpl-2.0", "gpl-3.0", "lgpl",
        "lgpl-2.1", "lgpl-3.0", "isc", "h-research", "intel-research", "lppl-1.3c", "ms-pl",
        "apple-ascl", "apple-amlr", "mpl-2.0", "odc-by", "odbl", "openmdw-1.0", "openmdw-1.1",
        "openrail++", "osl-3.0", "postgresql", "ofl-1.1", "ncsa", "unlicense", "zlib", "pddl",
        "lgpl-lr", "deepfloyd-if-license", "llama2", "llama3", "llama3.1", "llama3.2", "llama3.3",
        "llama4", "grok2-community", "gemma",
    }
)  # fmt: skip
"""Licences that the hub knows by these names; others are ``other`` with a ``license_name``."""


_CONFIG_ORIGIN = ("tag", "paper_ids", "paper_name", "origin_url", "notes", "hf_hub_id", "url")
"""Entries of ``pretrained_cfg`` in timm's ``config.json`` on the weights of the hub."""


@dataclass(frozen=True, slots=True)
class WeightsOrigin:
    """Origin of the weights that training began with.

    Attributes:
        kind: "hub", "file" or "random".
        base_model: Repository on the Hugging Face hub; None if there is none or it is unknown.
        license: Licence of these weights; None if it is unknown.
    """

    kind: Literal["hub", "file", "random"]
    base_model: str | None = None
    license: str | None = None

    @property
    def is_non_commercial(self) -> bool:
        """Whether the licence allows no commercial use."""
        name = (self.license or "").lower()
        return any(part in name for part in _NON_COMMERCIAL)

    def describe_restriction(self) -> str:
        """Return a clause on weights of a licence that allows no commercial use."""
        return (
            f"the backbone's weights have the licence {self.license}, which allows no commercial "
            f"use, and so none of the model"
        )

    def to_facts(self) -> dict[str, Any]:
        """Return the facts on a model card from which ``find_weights_origin`` returns this."""
        return {"base_model": self.base_model, "weights_license": self.license}


def find_weights_origin(card: ModelCard) -> WeightsOrigin:
    """Return the origin of the weights of a model from the facts on its card.

    Cards of earlier releases name the weights of the hub alone; timm knows the rest of them.
    """
    weights = str(card.facts.get("weights", ""))
    if weights == "random":
        return WeightsOrigin("random")
    is_hub = weights.startswith(_HUB_LABEL)
    if "weights_license" in card.facts:
        kind: Literal["hub", "file"] = "hub" if is_hub else "file"
        return WeightsOrigin(kind, card.facts.get("base_model"), card.facts["weights_license"])
    if is_hub:
        return describe_hub_weights(weights.removeprefix(_HUB_LABEL).removesuffix(")"))
    return WeightsOrigin("file")


def keep_known_origin(pretrained_cfg: Mapping[str, Any], card: ModelCard) -> dict[str, Any]:
    """Return the ``pretrained_cfg`` of ``config.json`` without what is not known of a model.

    timm writes tag, papers and address of its own weights for the backbone, whichever were used.
    """
    is_hub = find_weights_origin(card).kind == "hub"
    return {k: v for k, v in pretrained_cfg.items() if is_hub or k not in _CONFIG_ORIGIN}


def find_strictest(origins: Sequence[WeightsOrigin]) -> WeightsOrigin:
    """Return the origin whose licence a model of several origins has to follow.

    That is one that allows no commercial use, else an unknown one, else the first.
    """
    unknown = (one for one in origins if one.license is None and one.kind != "random")
    strict = (one for one in origins if one.is_non_commercial)
    return next(strict, next(unknown, origins[0]))


def describe_hub_weights(backbone: str) -> WeightsOrigin:
    """Return the origin of the pretrained weights that timm knows for a backbone."""
    if backbone.startswith(HUB_PREFIXES):
        return WeightsOrigin("hub", backbone.partition(":")[2].partition("@")[0])
    if is_import_path(backbone):
        return WeightsOrigin("random")
    import timm

    cfg = timm.get_pretrained_cfg(backbone)
    if cfg is None:
        return WeightsOrigin("hub")
    name = None if cfg.license in (None, "unknown") else str(cfg.license)
    return WeightsOrigin("hub", str(cfg.hf_hub_id) if cfg.hf_hub_id else None, name)
