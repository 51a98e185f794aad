"""Everything that is decided before anything starts: what, where, whether it fits, for how long, for how much."""
