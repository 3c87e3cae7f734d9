"""Drafts: n-gram tokens that are proposed for the unchanged model to verify."""
