"""A quantised model, trained to say what the original says: codes stay, codebooks, scales and norms change."""
