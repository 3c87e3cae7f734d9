"""Raw samples turned into the sections of result.json."""
