"""Fair measurements: of which weights, under which conditions, how long products take and how far off they are."""
