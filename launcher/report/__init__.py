"""Views of the bill and of the curve: terminal, JSON, CSV, HTML, PNG. What they show is already computed."""
