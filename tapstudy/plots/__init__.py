"""Dataset in, Axes or Figure out. One figure per file; nothing is computed here."""
