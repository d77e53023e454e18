"""What a request may contain, and how it is received or rejected."""
