"""Let docstrings be written as prose: what stands below their lists of arrays is shown above them, doctests last.

numpydoc would take a remark under ``Parameters`` for one more parameter, and Markdown a bare ``>>>`` for a
quotation. This puts each paragraph where the renderer understands it; the source stays as it reads best.
"""

import griffe


def is_heading(paragraph):
    """A section's first paragraph: a word, underlined."""
    lines = paragraph.splitlines()
    return len(lines) > 1 and set(lines[1]) == {"-"}


def is_item(paragraph):
    """An entry of a list of parameters: ``name : type``, or lines indented under something."""
    first, *rest = paragraph.splitlines()
    return " : " in first or any(line.startswith(" ") for line in [first, *rest])


def arranged(docstring):
    """The same paragraphs: prose, then numpydoc's sections, then doctests."""
    prose, sections, doctests = [], [], []
    for paragraph in docstring.split("\n\n"):
        if paragraph.startswith(">>> ") and not (sections and sections[-1].startswith("Examples")):
            doctests.append(paragraph)
        elif is_heading(paragraph) or (sections and is_item(paragraph)):
            sections.append(paragraph)
        else:
            (doctests if doctests and not sections else prose).append(paragraph)
    if doctests:
        doctests[0] = f"Examples\n--------\n{doctests[0]}"
    return "\n\n".join(prose + sections + doctests)


class Docstrings(griffe.Extension):
    """Applied to every object that mkdocstrings reads."""

    def on_object(self, *, obj, **kwargs):
        if obj.docstring:
            obj.docstring.value = arranged(obj.docstring.value)
