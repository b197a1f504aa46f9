"""All methods on one model: cost against closeness."""
