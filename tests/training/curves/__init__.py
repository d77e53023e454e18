"""Tests of the numbers of epochs, and of the check of each step."""
