"""One sampler a file; the file's name is its registered name."""
