"""Models: where they come from, what identifies them, and where their parts are."""
