"""Pure schedules of unfreeze depth, learning rate and image size."""
