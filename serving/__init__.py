"""serving is the inference box: controller, workers, engines, the OpenAI API, its page, and terminal chat."""
