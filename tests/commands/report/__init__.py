"""Tests of the commands on reports."""
