"""Parts that hold the features of the network near those of another."""
