"""Write the docstrings of Python's standard library as a corpus: one JSON line a module. Nothing is fetched and nothing is imported.

python docs/examples/standard_library.py data/python_docs.jsonl
"""

from __future__ import annotations

import ast
import json
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

LEFT_OUT = {"test", "tests", "idlelib", "lib2to3", "site-packages", "__pycache__", "__main__.py"}


def documented(node: ast.AST, name: str) -> Iterator[str]:
    """Yield the heading and docstring of a definition and of all public ones inside it, in the order of the file."""
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and (words := ast.get_docstring(node)):
        arguments = f"({ast.unparse(node.args)})" if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) else ""
        yield f"{name}{arguments}\n\n{words}"
    for inner in ast.iter_child_nodes(node):
        if isinstance(inner, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and not inner.name.startswith("_"):
            yield from documented(inner, f"{name}.{inner.name}")


def main(out: Path) -> None:
    """Write every module that has at least 500 characters of documentation."""
    library = Path(sysconfig.get_paths()["stdlib"])
    out.parent.mkdir(parents=True, exist_ok=True)
    num_documents = num_characters = 0
    with out.open("w", encoding="utf-8") as lines:
        for path in sorted(library.rglob("*.py")):
            parts = path.relative_to(library).with_suffix("").parts
            if LEFT_OUT & {*path.relative_to(library).parts}:
                continue
            name = ".".join(parts).removesuffix(".__init__")
            text = "\n\n".join(documented(ast.parse(path.read_bytes()), name))
            if len(text) >= 500:
                lines.write(json.dumps({"id": name, "text": text}, ensure_ascii=False) + "\n")
                num_documents += 1
                num_characters += len(text)
    print(f"{num_documents} documents, {num_characters:,} characters: {out}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
