"""serving is the inference box: controller, worker, engine, API, page, evaluation. Nothing is here yet."""
