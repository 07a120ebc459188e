"""The head-to-head comparison: which weights, how they are timed, how the result is shown."""
