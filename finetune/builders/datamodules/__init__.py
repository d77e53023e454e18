"""Data module of a run, from files or from the cache of decoded images."""
