"""Diagnosis of a run folder at the end of a fit."""
