"""Parts that plan the phases of training."""
