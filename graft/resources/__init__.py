"""The nouns of the REST interface, one file each: what `client.<noun>` offers."""
