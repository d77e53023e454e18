"""Health of the network of a run, before and after training."""
