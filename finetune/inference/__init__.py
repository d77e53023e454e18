"""Using a trained model: predictions and their evaluation; no training code."""
