"""Films, charts and pages."""
