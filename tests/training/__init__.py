"""Tests of schedules, optimizer groups, the module, its data and its callbacks."""
