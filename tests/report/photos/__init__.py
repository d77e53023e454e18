"""Tests of the pictures of a report."""
