"""Trackers of runs: Weights & Biases, TensorBoard and MLflow."""
