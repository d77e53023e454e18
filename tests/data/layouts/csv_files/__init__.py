"""Tests of CSVs of images."""
