"""The same figures over the checkpoints of a run, in one table and one document."""
