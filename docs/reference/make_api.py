"""Write numpy.md, torch.md and defects.md from the code itself: `python docs/reference/make_api.py`.

Every public function, class and named array of a module gets an entry, in the order of the file, and the
NumPy entry a link to its twin. Nothing is imported, so neither package need be installed.
"""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2]
HEADER = "<!-- Written by make_api.py: change that, not this. -->"
OPS = "pointwise norms projections rotary attention lightning experts losses packing"
PAGES = {
    "numpy": (
        "NumPy",
        "reference/minimax_numpy",
        ["shapes", "config", "ops", *(f"ops.{name}" for name in OPS.split()), "cache", "layers", "model", "generate"],
        [
            "inputs",
            "trace",
            "quantize",
            "checkpoint",
            "streaming",
            "forecast",
            "making",
            "cache_file",
            "text",
            "counts",
        ],
        "The truth: short functions on arrays. Modules stand in reading order, each with its equation first; the "
        "letters of every shape are those of the first section. Below an entry are its source and the way to its twin.",
    ),
    "torch": (
        "PyTorch",
        "accelerated/minimax_torch",
        ["shapes", "ops", *(f"ops.{name}" for name in OPS.split()), "cache", "layers", "model", "generate"],
        [
            "kernels.choose",
            "kernels.lightning",
            "kernels.chunks",
            "kernels.blocks",
            "kernels.segments",
            "kernels.decode",
            "kernels.experts",
            "kernels.fused",
            "kernels.layer",
            "kernels.attend",
            "slots",
            "quantize",
            "streaming",
            "hooks",
        ],  # fmt: skip
        "The twin: the same names in the same order, on tensors. An entry says only where it differs from the "
        "reference, and links to it for the rest.",
    ),
}


def source(package, module):
    """The file of a module, or None where there is none."""
    path = ROOT / package / module.replace(".", "/")
    files = path.with_suffix(".py"), path / "__init__.py"
    return next((file for file in files if file.is_file()), None)


def public_names(package, module):
    """Functions, classes and documented names of a module, in order."""
    file = source(package, module)
    body = ast.parse(file.read_text(encoding="utf-8")).body if file else []
    names = []
    for node, after in zip(body, [*body[1:], None]):
        documented = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.append(node.name)
        elif isinstance(node, ast.Assign) and documented and isinstance(node.targets[0], ast.Name):
            names.append(node.targets[0].id)
    return [name for name in names if not name.startswith("_")]


def entry(path, level, **options):
    lines = [f"::: {path}", "    options:", f"      heading_level: {level}"]
    return "\n".join([*lines, *(f"      {name}: {value}" for name, value in options.items())])


def page(kind):
    """The Markdown of one page."""
    title, package, core, more, lead = PAGES[kind]
    twin_package = PAGES["torch" if kind == "numpy" else "numpy"][1]
    boost = ["---\nsearch:\n  boost: 2\n---"] if kind == "numpy" else []  # the definition is found first
    blocks = [*boost, HEADER, f"# {title}", lead]
    for module in core + more:
        if source(package, module) is None:
            continue
        here, there = (f"{p.split('/')[1]}.{module}" for p in (package, twin_package))
        named = {"heading": f'"{module}"', "toc_label": f'"{module}"'}
        blocks.append(entry(here, 2, **named, members="false", show_source="false"))
        twins = public_names(twin_package, module)
        for name in public_names(package, module):
            blocks.append(entry(f"{here}.{name}", 3))
            if kind == "numpy" and name in twins and not module.startswith("shapes"):
                blocks.append(f"Twin: [`{there}.{name}`][{there}.{name}]\n{{ .twin }}")
    return "\n\n".join(blocks) + "\n"


def defects():
    """The Markdown of the table of planted defects."""
    tree = ast.parse((ROOT / "reference/minimax_numpy/check/defects.py").read_text(encoding="utf-8"))
    rows = [
        (node.name, *(argument.value for argument in node.decorator_list[0].args))
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and node.decorator_list
    ]
    lead = (
        f"{len(rows)} mistakes that people make with this model. Each is committed on purpose, in both packages, and "
        "must be caught; when your model differs, [the cross-check](check.md) commits them all and names the one that "
        "fits."
    )
    table = ["| what is wrong | what is right | name |", "|---|---|---|"]
    table += [f"| {says} | {cure.replace('|', chr(92) + '|')} | `{name}` |" for name, says, cure in rows]
    return "\n\n".join([HEADER, "# Planted defects", lead, FINGERPRINTS, "\n".join(table)]) + "\n"


FINGERPRINTS = """\
<figure class="figure" data-search-exclude>
--8<-- "assets/figures/fingerprints.svg"
<figcaption>Nine of them and where they show, the darker the larger, from a millionth of the answers to their size.
Where the first coloured position stands, and in which heads, tells more than how large the error is.</figcaption>
</figure>"""


def pages():
    """File name → content."""
    return {"numpy.md": page("numpy"), "torch.md": page("torch"), "defects.md": defects()}


if __name__ == "__main__":
    for name, text in pages().items():
        (Path(__file__).parent / name).write_text(text, encoding="utf-8", newline="\n")
