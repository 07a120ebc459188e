"""What whole models lose by being quantised: on which texts, by which ways, beside which integers."""
