"""Parameter groups, learning rates measured before training, and averaged weights."""
