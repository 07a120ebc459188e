"""The head-to-head comparison: of which kernels, how it runs, how the result is shown."""
