"""The API: a door with keys and limits in front of the workers, OpenAI's paths, the page, and the operators' calls."""
