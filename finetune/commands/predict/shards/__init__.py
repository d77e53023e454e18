"""Predictions of any number of images by several processes, in parts that survive a stop."""
