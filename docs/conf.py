"""How the pages are built: `sphinx-build -W docs docs/_build`. No network is asked."""

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

# what stands before a colon in the docstring of a field is no type: those are annotated
GoogleDocstring._parse_attribute_docstring = lambda self: list(self._lines)
