"""Pages that need no other file, out of the templates of this package."""

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined


def render(template: str, **context: Any) -> str:
    """Fills a template of this package; `template` is its path in it."""
    environment = Environment(
        loader=PackageLoader("diffusionvl", "."),
        undefined=StrictUndefined,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(**context)
