"""The paper's protocol on any pipeline: its rows, its measures, its numbers beside one's own."""
