"""The model: its sizes, its parts, and how one is built from a preset."""
