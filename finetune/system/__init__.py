"""Files, hardware and run folders; imports only the standard library and torch."""
