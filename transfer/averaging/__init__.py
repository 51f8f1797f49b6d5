"""Parts that average weights along the trajectory."""
