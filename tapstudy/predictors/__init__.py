"""Families of predictors: labels, and weights over the anchors."""
