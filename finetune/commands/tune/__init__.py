"""The tune verb."""
