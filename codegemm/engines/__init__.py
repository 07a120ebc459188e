"""Where products run. Each engine is a folder with the same file names and a list KERNELS."""
