"""The submit verb."""
