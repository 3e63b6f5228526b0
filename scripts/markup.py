"""Markdown as HTML: formulas as MathML, references to figures and tables by their numbers, words that may be divided."""

import re

from hyphenation import SOFT_HYPHEN, hyphenated
from latex2mathml.converter import convert
from markupsafe import Markup
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath


NO_BREAK = "\u00a0"


def to_mathml(formula, display="inline"):
    """A formula of TeX; in it names of functions, as log is, are told from products of letters."""
    return re.sub(r"<mi>([^<&]{2,})</mi>", r'<mi class="upright">\1</mi>', convert(formula, display=display))


class ReportRenderer(IPythonRenderer):
    """Markdown to HTML block by block, with formulas as MathML, which a browser draws without MathJax.

    A link to `#name` is a reference: `labels` says what stands for it, as in `Figure 3`; where it is None the link's own words stay.
    With `typeset`, words may be divided at the end of a line, and apostrophes are those of print.
    """

    def __init__(self, labels, typeset):
        super().__init__(escape=False, exclude_anchor_links=True)
        self.labels, self.typeset = labels, typeset

    def __call__(self, tokens, state):
        """The HTML of each block."""
        return [html for token in tokens if (html := self.render_token(token, state)).strip()]

    def text(self, text):
        """Words."""
        if not self.typeset:
            return super().text(text)
        html = hyphenated(super().text(text.replace("'", "’").replace(" ± ", f"{NO_BREAK}±{NO_BREAK}")))
        return re.sub(r"\d[\d.]*e-\d+", r'<span class="number">\g<0></span>', html)

    def heading(self, text, level, **attributes):
        """A heading, whole: its text is a bookmark of the PDF."""
        return super().heading(text.replace(SOFT_HYPHEN, ""), level, **attributes)

    def link(self, text, url, title=None):
        """A link; what it refers to by name is told by its number."""
        name = url.removeprefix("#")
        if name == url or name not in self.labels:
            return super().link(text, url, title)
        label = self.labels[name]
        return f'<a class="reference" href="#{name}">{label.replace(" ", "&nbsp;")}</a>' if label else text

    def block_math(self, body):
        """A formula in a line of its own."""
        return to_mathml(body.strip(), display="block")

    def inline_math(self, body):
        """A formula within a line."""
        return to_mathml(body.strip())

    def latex_environment(self, name, body):
        """A formula as \\begin{name} ... \\end{name}."""
        return self.block_math(f"\\begin{{{name}}}{body}\\end{{{name}}}")


def markdown_blocks(source, labels=None, typeset=False):
    """The HTML of each block of a Markdown text: its paragraphs, headings, lists, tables."""
    html, _ = MarkdownWithMath(renderer=ReportRenderer(labels or {}, typeset)).parse(source)
    return [Markup(block) for block in html]


def markdown(source, labels=None, typeset=False):
    """A Markdown text as HTML."""
    return Markup("").join(markdown_blocks(source, labels, typeset))
