"""The side of training images as a pure function of the epoch: small first, which is cheap."""


def compute_image_size(epoch: int, *, num_epochs: int, first: int, last: int) -> int:
    """Return the side in pixels of an epoch's training images, on a straight line.

    Between its ends it keeps to multiples of 32, the stride of most networks (progressive resizing,
    as in Howard 2018, https://www.fast.ai/posts/2018-04-30-dawnbench-fastai.html).

    Args:
        epoch: Counted from 0.
        num_epochs: Of the run.
        first: Side in the first epoch.
        last: Side in the last epoch.
    """
    if num_epochs == 1 or epoch >= num_epochs - 1:
        return last
    side = first + (last - first) * epoch / (num_epochs - 1)
    nearest = max(32, round(side / 32) * 32)
    return first if epoch == 0 else min(max(nearest, min(first, last)), max(first, last))
