"""Drafts: what probably follows, counted on text, for the unchanged model to verify."""
