"""What proposes the continuation of a text, counted on other text."""
