"""Card of an image: its thumbnail with what is said about it."""

from dataclasses import dataclass

from finetune.report.run_facts import RunFacts


@dataclass(frozen=True, slots=True)
class PhotoCard:
    """Image with what is said about it.

    Attributes:
        path: Path in the manifest.
        lines: Term and text of each line below the picture.
        is_wrong: Whether the prediction is wrong.
        hint: Remark in a sentence; may be empty.
        picture: Data URI of the thumbnail; empty without one.
        overlay: Data URI of the photo under its saliency map; empty without a trusted one.
        missing: Why there is no thumbnail; empty where none was asked for.
    """

    path: str
    lines: tuple[tuple[str, str], ...]
    is_wrong: bool = False
    hint: str = ""
    picture: str = ""
    overlay: str = ""
    missing: str = ""

    @property
    def description(self) -> str:
        """Text that stands for the picture."""
        return ", ".join((self.path, *(f"{term}: {text}" for term, text in self.lines)))


def build_card(
    facts: RunFacts,
    path: str,
    lines: tuple[tuple[str, str], ...],
    *,
    is_wrong: bool = False,
    hint: str = "",
) -> PhotoCard:
    """Return the card of an image, with its thumbnail if the run has one."""
    photos = facts.photos
    if photos is None:
        return PhotoCard(path, lines, is_wrong, hint)
    picture = photos.thumbnails.get(path, "")
    missing = "" if picture else photos.unreadable.get(path, "not drawn")
    return PhotoCard(path, lines, is_wrong, hint, picture, photos.overlays.get(path, ""), missing)
