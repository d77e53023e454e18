"""Networks as graphs: calibrated outputs, and the preprocessing of photos as tensor operations."""
