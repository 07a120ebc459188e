"""`make cpu`: what the CPU engine reaches on this machine, in ratios to what it is measured against in the same run."""
