"""Contract tests: one parametrised test for each table of components."""
