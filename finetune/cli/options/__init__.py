"""Options of commands that set config keys."""
