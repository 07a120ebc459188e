"""How much of a whole model is left when it is quantised: likelihoods of texts, beside those of its original."""
