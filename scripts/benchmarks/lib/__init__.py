"""Helpers of the benchmarks: timing, synthetic photos, and the loops that are compared."""
