"""Files of the images whose saliency maps are drawn; those in memory are written to a folder."""

from pathlib import Path

from finetune.commands.saliency.overlays import check_no_input
from finetune.commands.saliency.picture_paths import PicturedImage
from finetune.data.streams.file_streams import FileStream, FolderStream, PathListStream
from finetune.data.streams.open_stream import JoinedStream
from finetune.data.streams.stream_image import ImageStream
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


def check_files_replaced(stream: ImageStream, folder: Path, *, root: Path) -> None:
    """Check before a prediction that no picture would replace an image, if all images are files.

    Args:
        stream: Images.
        folder: Folder of the pictures.
        root: Folder of the images, or the only image.

    Raises:
        ConfigError: One would.
        DataError: The stream holds no image.
    """
    if folder.exists() and _lists_files(stream):
        images = [
            PicturedImage(image.name, image.path)
            for image in stream.iterate()
            if image.path is not None
        ]
        check_no_input(images, folder, root)


def _lists_files(stream: ImageStream) -> bool:
    if isinstance(stream, JoinedStream):
        return all(map(_lists_files, stream.streams))
    return isinstance(stream, FileStream | FolderStream | PathListStream)
