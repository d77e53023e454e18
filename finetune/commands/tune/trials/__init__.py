"""Trials of a study, and the processes that run them."""
