"""Tests of the predict verb."""
