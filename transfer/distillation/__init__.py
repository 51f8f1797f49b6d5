"""Parts whose loss replaces the task loss by one that follows a teacher."""
