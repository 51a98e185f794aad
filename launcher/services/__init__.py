"""Models that answer: `serve` on this computer, on rented machines and for compose, and who talks to them."""
