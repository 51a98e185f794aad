"""Machines that may be taken away: when (trace, market) and where to go next (policy)."""
