"""Alembic migrations; installed, so that `graft migrate` works anywhere. Run by `store.migrate`."""
