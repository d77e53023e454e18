"""Lines of messages to a person."""
