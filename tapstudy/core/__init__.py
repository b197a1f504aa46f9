"""Pure functions on tensors: when to run in full, what to keep, how to predict, how to score. Imports torch only."""
