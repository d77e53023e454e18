"""Fine-tuning: ``fit`` and ``resume``, their plans, and the processes that take part in a run."""
