"""Comparison of runs: sections of the page of several runs."""
