"""Image files: validation, decoding, lazy crops and sources of a dataset."""
