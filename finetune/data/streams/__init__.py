"""Streams of images without labels, one after the other, whatever holds them."""
