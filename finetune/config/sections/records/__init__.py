"""Config sections on what a run leaves behind."""
