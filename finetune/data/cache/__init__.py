"""Memory-mapped stores of decoded images and features."""
