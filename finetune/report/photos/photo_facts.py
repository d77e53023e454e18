"""Pictures that a report shows, by the path of their images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from finetune.report.photos.feature_map import FeatureMap
from finetune.report.photos.network_pictures import NetworkPictures


@dataclass(frozen=True, slots=True, kw_only=True)
class PhotoFacts:
    """Pictures of a run.

    Attributes:
        thumbnails: Data URI of the thumbnail of an image, by its path in the manifest.
        unreadable: Reason why an image has no thumbnail, by its path.
        augmented: Data URI of a sheet of augmented training images; empty without one.
        overlays: Data URI of the photo under its saliency map, by its path, of trusted maps alone.
        saliency_note: Sentence on how many maps can be trusted; empty without any.
        feature_map: Map of the features of images; None without one.
        network_pictures: Filters and feature maps; None without any.
        skipped: Sentences on what was left out and why.
    """

    thumbnails: Mapping[str, str] = field(default_factory=dict)
    unreadable: Mapping[str, str] = field(default_factory=dict)
    augmented: str = ""
    overlays: Mapping[str, str] = field(default_factory=dict)
    saliency_note: str = ""
    feature_map: FeatureMap | None = None
    network_pictures: NetworkPictures | None = None
    skipped: Sequence[str] = ()
