"""Section with the first filters of a network, and its feature maps of one photo."""

from finetune.report.photos.network_pictures import NetworkPictures
from finetune.report.run_facts import RunFacts


def build_network_pictures(facts: RunFacts) -> NetworkPictures | None:
    """Return the pictures of the network; None without any."""
    found = None if facts.photos is None else facts.photos.network_pictures
    return found if found is not None and (found.stages or found.filters or found.notes) else None
