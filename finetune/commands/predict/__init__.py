"""The predict verb."""
