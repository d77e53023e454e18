"""Transforms for training and evaluation, from lazy images to uint8 pixels."""
