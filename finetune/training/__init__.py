"""The training loop: the only floor that imports Lightning."""
