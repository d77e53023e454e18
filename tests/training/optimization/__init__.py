"""Tests of parameter groups and measured learning rates."""
