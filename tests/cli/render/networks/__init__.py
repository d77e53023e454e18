"""Tests of tables of layers and stages."""
