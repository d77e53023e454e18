"""Pretrained weights: files, folders and the hub, and what was loaded from them."""
