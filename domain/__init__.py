"""The nouns of Graft: plain values that every other layer speaks in. Standard library and pydantic only."""
