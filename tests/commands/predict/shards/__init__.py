"""Tests of predictions in parts."""
