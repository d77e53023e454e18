"""Metrics, significance tests, calibration and class priors."""
