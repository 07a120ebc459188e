"""A task of lm-eval's that needs no network, and what runs it: `python -m benchmarks.models.lm_eval FOLDER`."""
