"""Tests of the costs of networks."""
