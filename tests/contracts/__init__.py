"""One parametrised test a table."""
