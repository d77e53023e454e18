"""Memory-mapped stores of decoded images, features and fingerprints, with eviction."""
