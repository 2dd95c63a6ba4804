r"""Griffe extensions: numpydoc's reStructuredText as Markdown, and named tuples' signatures.

``.. math::`` blocks and ``:math:`` roles become MathML, which browsers render by themselves (so
the site needs no script from another host); double backticks become single ones. LaTeX that
cannot be converted stops the build.
"""

import re
import textwrap
from typing import Any

import griffe
from latex2mathml.converter import convert

BLOCK = re.compile(
    r"^(?P<indent> *)\.\. math::(?P<first>[^\n]*)\n"
    r"(?P<rest>(?:(?P=indent) +\S[^\n]*\n| *\n(?=(?P=indent) +\S))*)",
    re.MULTILINE,
)
INLINE = re.compile(r":math:`([^`]+)`")
SHAPED = re.compile(r"``([^`]+)``")


def to_mathml(latex: str, display: str) -> str:
    """LaTeX to MathML, on one line so that Markdown leaves it alone."""
    return convert(" ".join(latex.split()), display=display)


def to_markdown(text: str) -> str:
    """Rewrite the reStructuredText that our docstrings use."""

    def block(match: re.Match[str]) -> str:
        latex = match["first"] + "\n" + textwrap.dedent(match["rest"])
        mathml = to_mathml(latex, "block")
        return f"\n{match['indent']}<div>{mathml}</div>\n\n"

    text = BLOCK.sub(block, text + "\n")
    text = INLINE.sub(lambda match: to_mathml(match[1], "inline"), text)
    return SHAPED.sub(r"`\1`", text).rstrip()


class RstToMarkdown(griffe.Extension):
    """Rewrites every docstring before it is parsed into sections."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrite one object's docstring."""
        if obj.docstring:
            obj.docstring.value = to_markdown(obj.docstring.value)


class NamedTupleSignatures(griffe.Extension):
    """Gives a `NamedTuple` the signature of its fields; griffe knows those of dataclasses only."""

    def on_class_members(self, *, cls: griffe.Class, **kwargs: Any) -> None:
        """Add the `__init__` that the class has without writing it."""
        if not any(str(base).rpartition(".")[2] == "NamedTuple" for base in cls.bases):
            return
        kind = griffe.ParameterKind.positional_or_keyword
        fields = [
            griffe.Parameter(name, annotation=m.annotation, kind=kind, default=m.value)
            for name, m in cls.members.items()
            if isinstance(m, griffe.Attribute) and m.annotation is not None
            if "property" not in m.labels
        ]
        parameters = griffe.Parameters(griffe.Parameter("self", kind=kind), *fields)
        init = griffe.Function("__init__", parameters=parameters, returns="None", parent=cls)
        cls.set_member("__init__", init)
