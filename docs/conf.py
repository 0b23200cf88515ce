"""How Sphinx builds the site: ``make docs``."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "_ext"))

from hatcli import __version__  # noqa: E402 - behind the path on purpose

project = "hat"
author = "the authors of hat"
project_copyright = "the authors of hat, Apache-2.0"
release = __version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_gallery.gen_gallery",
    "hat_docs",
]
exclude_patterns = ["examples", "_ext", "how-to/deploy/*.md", "gallery/index.rst"]
language = "en"
smartquotes = False  # two hyphens begin an option

# The documents are plain Markdown that a code host shows as well, with its anchors for headings.
myst_heading_anchors = 4

# Docstrings mark code as Markdown does.
default_role = "code"
# Types of other libraries have no page here; those of hat must have one.
nitpick_ignore_regex = [
    ("py:.*", r"(?!hatcli\.).*"),
    ("py:.*", r"hatcli\..*\.[A-Z]"),  # type variables
]
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True

sphinx_gallery_conf = {
    "examples_dirs": "examples",
    "gallery_dirs": "gallery",
    "filename_pattern": r"python_api\.py",
    "abort_on_example_error": True,
    "image_scrapers": ("matplotlib",),
    "download_all_examples": False,
    "show_memory": False,
    "min_reported_time": 3600,  # how long one machine took tells a reader nothing
    "show_signature": False,
    "write_computation_times": False,
    "reset_modules": (),
}

html_theme = "furo"
html_title = "hat"
templates_path = ["_templates"]
html_static_path = ["_static"]
html_css_files = ["hat.css"]
html_js_files = [("hat.js", {"defer": "defer"})]
html_copy_source = False
html_show_sphinx = False
pygments_style = "a11y-high-contrast-light"
pygments_dark_style = "a11y-high-contrast-dark"

linkcheck_anchors = False
linkcheck_timeout = 20
