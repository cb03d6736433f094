# SPDX-License-Identifier: Apache-2.0
"""How `make docs` builds the site: Sphinx, pages in Markdown, the API from the docstrings."""

from stc_kernels import __version__

project = "stc-kernels"
copyright = "the stc-kernels authors"
version = release = __version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
html_theme = "furo"
html_title = "stc-kernels"
exclude_patterns = ["_build"]

myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence"]
napoleon_google_docstring = False
napoleon_use_ivar = True
autodoc_typehints = "none"  # the docstrings say types with shapes
autodoc_member_order = "bysource"
# A link to a page or heading that is not there fails the build (`make docs` turns warnings into
# errors); a name in a docstring need not be a page.
nitpicky = False
