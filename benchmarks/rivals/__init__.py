"""What people would use instead of Graft, each a program of its own: it reads a task, and leaves a result."""
