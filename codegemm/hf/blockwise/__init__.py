"""A whole model, quantised block by block on what the blocks before make of a text."""
