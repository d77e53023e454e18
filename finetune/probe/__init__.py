"""Linear probe: a linear head, and optionally the last stage, fitted on frozen features."""
