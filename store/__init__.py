"""Everything outside the process: settings, tables, sessions, queries, events, leases, blobs, cache folder, queue."""
