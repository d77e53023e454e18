"""Statistics of a run for the rejection of answers, measured from its images."""
