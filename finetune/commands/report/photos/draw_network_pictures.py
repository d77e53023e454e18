"""Pictures of a network: its first filters, and its feature maps of one photo."""

from pathlib import Path

from finetune.commands.report.photos.filters import draw_filters
from finetune.commands.report.photos.run_network import RunNetwork
from finetune.commands.report.photos.sprite_sheet import shrink
from finetune.commands.report.photos.stage_maps import draw_stage_maps
from finetune.commands.report.photos.thumbnails import SIDE_PX, encode_webp
from finetune.report.photos.network_pictures import NetworkPictures


def draw_network_pictures(network: RunNetwork, root: Path, path: str) -> NetworkPictures:
    """Return the pictures of a network, and sentences on what cannot be shown.

    Args:
        network: Network of the run; of an ensemble its first member.
        root: Folder of the images.
        path: Path of the photo relative to it.
    """
    notes = ["These are of the first member of the ensemble."] if network.is_member else []
    drawn = draw_filters(network.network, network.card.spec.input_size[0])
    filters = None if isinstance(drawn, str) else drawn
    if isinstance(drawn, str):
        notes.append(drawn)
    pixels = network.read_pixels(root / path)
    if pixels is None:
        notes.append(f"Feature maps need {path}, which cannot be read.")
        return NetworkPictures(path, "", (), filters, notes)
    stages = draw_stage_maps(network, pixels)
    if not stages:
        notes.append("No stage of the network has feature maps with positions.")
    photo = encode_webp(shrink(pixels, max(SIDE_PX, min(pixels.shape[:2]))))
    return NetworkPictures(path, photo, stages, filters, notes)
