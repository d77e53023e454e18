"""Schedules: pure functions of the epoch or the step."""
