"""The report as one HTML page, which loads nothing from elsewhere."""

from __future__ import annotations

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined


def to_html(data: dict[str, Any]) -> str:
    """Return the page; ``data`` stands in it as JSON, and its script writes the rest from that."""
    environment = Environment(
        loader=PackageLoader("compiler.cli"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":")}
    return environment.get_template("report.html.j2").render(data=data)
