"""Compute on tensors with torch alone: when to run in full, what to keep, how to predict, how to score."""
