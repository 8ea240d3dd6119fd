"""Settings of `sphinx-build -W docs docs/_build`. The build needs no network."""

from sphinx.ext.napoleon.docstring import GoogleDocstring

from worldlm import __version__

project = "WorldLM"
release = version = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"WorldLM {__version__}"
html_show_copyright = False

myst_heading_anchors = 3

default_role = "code"  # a single backtick in a docstring is code
autodoc_inherit_docstrings = False  # a hook without a docstring is explained by its base class
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_class_signature = "separated"
napoleon_google_docstring = True
napoleon_numpy_docstring = False

# in the docstring of a field, text before a colon is not a type: fields have annotations
GoogleDocstring._parse_attribute_docstring = lambda self: list(self._lines)
