"""Pictures that a report shows, by the path of their images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class PhotoFacts:
    """Pictures of a run.

    Attributes:
        thumbnails: Data URI of the thumbnail of an image, by its path in the manifest.
        unreadable: Reason why an image has no thumbnail, by its path.
        skipped: Sentences on what was left out and why.
    """

    thumbnails: Mapping[str, str] = field(default_factory=dict)
    unreadable: Mapping[str, str] = field(default_factory=dict)
    skipped: Sequence[str] = ()
