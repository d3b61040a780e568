"""The makers of the generated pages are modules of docs/_ext; tests of the documents read them as Sphinx does."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "docs" / "_ext"))
