"""Evaluation of images with any number of labels: metrics, thresholds and calibration."""
