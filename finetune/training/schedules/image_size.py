"""Progressive image size: the side of the training images as a pure function of the epoch."""


def compute_image_size(epoch: int, *, num_epochs: int, first: int, last: int) -> int:
    """Compute the side in pixels of an epoch's training images by linear interpolation.

    Between the first and the last epoch it is rounded to multiples of 32, the stride of most
    networks (progressive resizing, as in Howard 2018,
    https://www.fast.ai/posts/2018-04-30-dawnbench-fastai.html); small images at first save time.

    Args:
        epoch: Epoch, counted from 0.
        num_epochs: Number of epochs of the run.
        first: Side in the first epoch.
        last: Side in the last epoch.
    """
    if num_epochs == 1 or epoch >= num_epochs - 1:
        return last
    side = first + (last - first) * epoch / (num_epochs - 1)
    nearest = max(32, round(side / 32) * 32)
    return first if epoch == 0 else min(max(nearest, min(first, last)), max(first, last))
