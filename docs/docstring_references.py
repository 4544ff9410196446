"""
Docstrings as the site shows them: references such as [`name`] are plain code, since not every name has a page, two
subscripts in a row ("result["recall@1"]["all"]") are no link of Markdown, and an "Example:" is code.
"""

import re

from griffe import Docstring, Extension


class DocstringReferences(Extension):
    """Rewrites the docstring of every object before Markdown reads it."""

    def on_object(self, *, obj, **kwargs) -> None:
        docstring: Docstring | None = obj.docstring
        if docstring is not None:
            text = re.sub(r"\[(`~?[\w.]+`)\](?![\[(])", r"\1", docstring.value)
            text = re.sub(r"(?m)^( *)Example:$", r"\1Examples:", text)
            docstring.value = text.replace("][", "]\\[")
