"""Batches of images from many requests."""
