"""Command lines of other programs in vlaunch's words."""
