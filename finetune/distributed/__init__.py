"""Launch detection, rendezvous and collectives of a run's processes. Imports no Lightning."""
