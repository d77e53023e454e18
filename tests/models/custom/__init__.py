"""Tests of the networks, their groups and their weights."""
