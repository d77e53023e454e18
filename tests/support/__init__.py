"""Support code of the tests: small datasets, runs in other processes, and test servers."""
