"""Saliency maps of the images that are predicted."""
