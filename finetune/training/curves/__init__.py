"""Numbers of each epoch, and the check of each step that keeps diverged weights off the disk."""
