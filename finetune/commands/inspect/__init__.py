"""The inspect verb."""
