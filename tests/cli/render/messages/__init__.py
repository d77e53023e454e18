"""Tests of the lines of messages."""
