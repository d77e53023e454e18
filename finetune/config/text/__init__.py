"""Text of configs: its YAML, and the errors in it."""
