"""Tests of the scripts that ship beside the package."""
