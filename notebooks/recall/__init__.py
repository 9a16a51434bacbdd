"""The recall experiment: its task, its training, and the models that came of it."""
