"""Files, hardware and run folders; the standard library only."""
