"""How fast whole models decode: quantised layers, other projects' kernels and torch's dense layers, in turns."""
