"""A run as its store tells it: attempts, saves, costs, what may be deleted. Starts nothing."""
