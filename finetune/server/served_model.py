"""Interface between HTTP and prediction: the model as the server needs it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class Upload:
    """Image that a client sent.

    Attributes:
        name: Name by which the client knows it; never a path that is opened.
        content: Bytes of the image file.
    """

    name: str
    content: bytes


@dataclass(frozen=True, slots=True)
class SamplePhoto:
    """Photo that the page offers.

    Attributes:
        name: File name.
        label: Its class, or its labels.
        content: Bytes of the image file.
        thumbnail: Small JPEG of it.
    """

    name: str
    label: str
    content: bytes
    thumbnail: bytes


@dataclass(frozen=True, slots=True)
class SaliencyPicture:
    """Picture of what the answer for an image depends on.

    Attributes:
        label: Predicted class, which the picture is about; empty if the model has no maps.
        picture: PNG; None where no picture can be trusted.
        reason: Why there is none.
    """

    label: str = ""
    picture: bytes | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """Description of a model for clients.

    Attributes:
        metadata: JSON values: classes, preprocessing, metrics, versions …
        title: Title of the page.
        notes: Sentences on what the model was trained on, how good it is, and its limits.
        figures: Numbers that stand out on the page: label, value and remark.
    """

    metadata: dict[str, Any]
    title: str
    notes: tuple[str, ...] = ()
    figures: tuple[tuple[str, str, str], ...] = ()


class ServedModel(Protocol):
    """Model behind a server.

    ``decode`` is called in several threads at once; ``compute`` in one thread only.
    """

    @property
    def facts(self) -> ModelFacts:
        """Description of the model."""

    @property
    def samples(self) -> Sequence[SamplePhoto]:
        """Photos that the page offers."""

    @property
    def saliency_reason(self) -> str:
        """Why there are no saliency pictures; empty if there are."""

    def decode(self, upload: Upload) -> Any:
        """Return the input of the network for an image.

        Raises:
            DataError: The image cannot be read; the message is the reason.
        """

    def compute(self, inputs: Sequence[Any]) -> list[list[float]]:
        """Return the class probabilities of decoded images, shape (B, K)."""

    def describe(
        self, name: str, probabilities: Sequence[float], *, top_k: int, has_all: bool
    ) -> dict[str, Any]:
        """Return the prediction of an image as JSON values.

        Args:
            name: Name of the image.
            probabilities: Probability of each class, shape (K,).
            top_k: Number of classes, the most probable first.
            has_all: Whether the probabilities of all classes follow.
        """

    def draw_saliency(self, upload: Upload) -> SaliencyPicture:
        """Return the saliency picture of an image; called in one thread at a time.

        Raises:
            DataError: The image cannot be read; the message is the reason.
        """
