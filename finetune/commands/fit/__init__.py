"""The fit verb."""
