"""Tests of models in files of other libraries."""
