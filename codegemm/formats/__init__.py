"""How weights are stored, a file a format: additive codebooks (AQLM, CodeGEMM), the E8P lattice (QuIP#),
trellis codes (QTIP), and any of them with a rotation, offsets or several terms around it."""

from codegemm.formats import codebook, e8p, qtip, transformed
from codegemm.formats.format import parse, random_weight, registered, spec_of

__all__ = ["codebook", "e8p", "parse", "qtip", "random_weight", "registered", "spec_of", "transformed"]
