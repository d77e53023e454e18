"""Plan and result of a probe."""
