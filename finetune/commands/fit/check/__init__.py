"""Check that a few training images can be learned, before a run."""
