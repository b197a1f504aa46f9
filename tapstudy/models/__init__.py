"""Embedded models: pipeline, data, training, judging."""
