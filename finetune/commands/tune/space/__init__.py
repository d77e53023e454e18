"""Search space of a study."""
