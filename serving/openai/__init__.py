"""OpenAI's HTTP API as data: what is asked, what is answered, and how errors look."""
