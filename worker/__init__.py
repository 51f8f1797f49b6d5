"""Claims a lease, composes search, transfer and store, reports back. The only package that knows all others."""
