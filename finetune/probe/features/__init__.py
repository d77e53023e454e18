"""Features of a frozen backbone: extraction, cache and augmented views."""
