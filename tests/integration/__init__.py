"""Tests of whole runs, in processes of their own."""
