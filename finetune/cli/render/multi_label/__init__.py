"""Text form of what a multi-label model returns."""
