"""Films, charts and pages."""

FILM_SUFFIXES = (".gif", ".html")  # of the files that a film can be written to
