"""HTTP: checks a request, writes a row, wakes a handler. Never loads torch."""
