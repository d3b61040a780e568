"""How Sphinx builds these pages: `make docs`. Every warning is an error there, and no page may load anything from the network."""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE / "_ext")]

from pygments.lexers import JsonLexer  # noqa: E402
from sphinx.highlighting import lexers  # noqa: E402

import megatron_cpt  # noqa: E402  # found by the line above

project = "megatron_cpt"
author = "the authors of megatron_cpt"
version = release = megatron_cpt.__version__
language = "en"

extensions = ["myst_parser", "sphinx_copybutton", "generated_reference", "nothing_from_the_network"]
exclude_patterns = ["_build", "_ext"]
myst_heading_anchors = 4
nitpicky = True
highlight_language = "none"

html_theme = "furo"
html_title = f"megatron_cpt {release}"
html_show_copyright = False
html_show_sourcelink = False
copybutton_exclude = ".linenos, .gp, .go"

lexers["jsonl"] = JsonLexer()  # one object a line
