"""Floor 5: an audit's evidence as pages and files (HTML, Markdown, JSON, JUnit XML, SVG). Needs no model and no data."""

from sparring.report.writing import FORMS, write_report

__all__ = ["FORMS", "write_report"]
