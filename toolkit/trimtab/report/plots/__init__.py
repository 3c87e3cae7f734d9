"""The plots of a report: a title that says what was found, and panels of one width."""
