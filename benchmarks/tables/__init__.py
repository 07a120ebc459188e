"""`make tables`: what documents say of measurements, and the crossovers that `auto` looks up, from the files that
measuring left in benchmarks/results.

The CPUs' are of `codegemm compare --json` and of `make cpu`, those of torch of `make torch`, the GPUs' of `make gpu`,
the quantisers' of `make accuracy`, whole models' of `make models`, those beside the paper's of `codegemm reproduce
--json`.
"""
