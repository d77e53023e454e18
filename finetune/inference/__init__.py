"""Predictions of a trained model and their evaluation, without training code."""
