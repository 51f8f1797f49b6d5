"""Parts that change the network before training starts."""
