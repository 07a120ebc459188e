"""Bits by layer: more for the matrices that a model's predictions suffer most from."""
