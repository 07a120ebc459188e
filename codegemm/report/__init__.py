"""A page of what was measured, predicted and reproduced: `codegemm report`."""
