"""Diagnosis of a run in sentences, from its numbers: what is wrong, and the option that helps."""
