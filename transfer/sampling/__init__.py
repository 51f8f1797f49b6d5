"""Parts that choose which items an epoch shows."""
