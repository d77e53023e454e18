"""Statistics in a bundle from which answers that should be rejected are found."""
