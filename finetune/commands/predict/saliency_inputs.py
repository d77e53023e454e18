"""Files of the images whose saliency maps are drawn; those in memory are written to a folder."""

from pathlib import Path

from finetune.inference.prediction_stream import PredictedBatch


class SaliencyInputs:
    """Image files by the names that users see.

    Args:
        folder: Folder for images that are not files.

    Attributes:
        paths: Readable image files by their names.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.paths: dict[str, Path] = {}

    def add(self, batch: PredictedBatch) -> None:
        """Add the readable images of a batch."""
        for row in batch.rows:
            image = batch.images[row]
            path = image.path
            if path is None:
                path = self._folder / f"{len(self.paths)}"
                path.write_bytes(image.data or b"")
            self.paths[image.name] = path
