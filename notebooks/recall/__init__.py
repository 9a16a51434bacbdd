"""The recall experiment. A package of its own name, so that the figure of that name is not taken for it."""
