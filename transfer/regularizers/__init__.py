"""Parts that penalise the weights."""
