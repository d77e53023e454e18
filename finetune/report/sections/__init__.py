"""Sections of the page: a dataclass and a builder for each."""
