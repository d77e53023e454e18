"""Files of the images whose saliency maps are drawn; those in memory are written to a folder."""

from pathlib import Path

from finetune.commands.saliency.picture_paths import PicturedImage
from finetune.inference.prediction_stream import PredictedBatch


class SaliencyInputs:
    """Image files with the names that users see.

    Args:
        folder: Folder for images that are not files.

    Attributes:
        images: Readable images as files.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.images: list[PicturedImage] = []

    def add(self, batch: PredictedBatch) -> None:
        """Add the readable images of a batch."""
        for row in batch.rows:
            image = batch.images[row]
            path = image.path
            if path is None:
                path = self._folder / f"{len(self.images)}"
                path.write_bytes(image.data or b"")
            self.images.append(PicturedImage(image.name, path, is_copy=image.path is None))
