"""Sampling weights and epoch samplers."""
