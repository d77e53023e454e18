"""Pictures that a report shows, by the path of their images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from finetune.report.photos.feature_map import FeatureMap


@dataclass(frozen=True, slots=True, kw_only=True)
class PhotoFacts:
    """Pictures of a run.

    Attributes:
        thumbnails: Data URI of the thumbnail of an image, by its path in the manifest.
        unreadable: Reason why an image has no thumbnail, by its path.
        feature_map: Map of the features of images; None without one.
        skipped: Sentences on what was left out and why.
    """

    thumbnails: Mapping[str, str] = field(default_factory=dict)
    unreadable: Mapping[str, str] = field(default_factory=dict)
    feature_map: FeatureMap | None = None
    skipped: Sequence[str] = ()
