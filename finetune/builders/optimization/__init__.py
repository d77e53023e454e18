"""Optimizer of a run, and the checks of the parameters of named components."""
