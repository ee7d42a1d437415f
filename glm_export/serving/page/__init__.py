"""The page at ``/``: one HTML file, its styles and its scripts, as browsers run them. No Python lives here."""
