"""Behind `codegemm explore`: size, error and time of the configurations that fit a budget of bits."""
