"""The learning problems, one file each."""
