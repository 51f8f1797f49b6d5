"""One file per task: from the bytes of an item to the pixels a network is evaluated on."""
