"""How rough a model is in time, and the low-pass that quiets it."""
