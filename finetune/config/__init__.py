"""Config of a run: its sections, config files, and the rules behind "auto". Imports no torch."""
