"""The HTML pages: each one self-contained file, drawn from the JSON of a report."""
