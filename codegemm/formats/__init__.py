"""How weights are stored: additive codebooks (AQLM, CodeGEMM) and the E8P lattice codebook (QuIP#)."""
