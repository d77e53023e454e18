"""One linear story a verb; the public Python API is these functions."""
