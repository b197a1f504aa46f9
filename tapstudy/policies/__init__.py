"""Policies: when a model runs in full, and what stands in for it in between."""
