"""LaTeX as one line of text: what the dialect's math rules compare.

The rendering is flat, as the dialect's is: `\\frac{a+b}{c}` reads `a+b/c` and `x^{2n}` reads
`x^2n`, without parentheses of their own. Scores of those rules depend on it; `math_verify` is the
grader that understands the expression.
"""

import re
import unicodedata
from collections.abc import Callable

MAX_CHARS = 10_000
MAX_DEPTH = 60
"""Deeper or longer text is no answer to an exercise, and is left as it is."""

GREEK = (
    "alpha beta gamma delta zeta eta theta iota kappa lambda mu nu xi pi rho sigma tau upsilon chi "
    "psi omega Gamma Delta Theta Lambda Xi Pi Sigma Upsilon Phi Psi Omega"
)
FUNCTIONS = (
    "sin cos tan sec csc cot sinh cosh tanh coth arcsin arccos arctan log ln lg exp lim min max "
    "sup inf gcd lcm det deg dim ker arg hom mod bmod Pr Re Im"
)
SYMBOLS = {
    "epsilon": "\u03f5",
    "varepsilon": "\u03b5",
    "phi": "\u03d5",
    "varphi": "\u03c6",
    "infty": "\u221e",
    "cup": "\u222a",
    "cap": "\u2229",
    "cdot": "\u00b7",
    "times": "\u00d7",
    "div": "\u00f7",
    "pm": "\u00b1",
    "mp": "\u2213",
    "le": "\u2264",
    "leq": "\u2264",
    "leqslant": "\u2a7d",
    "ge": "\u2265",
    "geq": "\u2265",
    "geqslant": "\u2a7e",
    "lt": "<",
    "gt": ">",
    "ne": "\u2260",
    "neq": "\u2260",
    "approx": "\u2248",
    "equiv": "\u2261",
    "sim": "\u223c",
    "simeq": "\u2243",
    "cong": "\u2245",
    "propto": "\u221d",
    "in": "\u2208",
    "notin": "\u2209",
    "subset": "\u2282",
    "subseteq": "\u2286",
    "supset": "\u2283",
    "supseteq": "\u2287",
    "setminus": "\u2216",
    "emptyset": "\u2205",
    "varnothing": "\u2205",
    "forall": "\u2200",
    "exists": "\u2203",
    "neg": "\u00ac",
    "lnot": "\u00ac",
    "wedge": "\u2227",
    "land": "\u2227",
    "vee": "\u2228",
    "lor": "\u2228",
    "to": "\u2192",
    "rightarrow": "\u2192",
    "leftarrow": "\u2190",
    "leftrightarrow": "\u2194",
    "Rightarrow": "\u21d2",
    "implies": "\u21d2",
    "Leftrightarrow": "\u21d4",
    "iff": "\u21d4",
    "mapsto": "\u21a6",
    "circ": "\u2218",
    "degree": "\u00b0",
    "textdegree": "\u00b0",
    "prime": "'",
    "angle": "\u2220",
    "triangle": "\u25b3",
    "perp": "\u22a5",
    "parallel": "\u2225",
    "mid": "|",
    "vert": "|",
    "lvert": "|",
    "rvert": "|",
    "lfloor": "\u230a",
    "rfloor": "\u230b",
    "lceil": "\u2308",
    "rceil": "\u2309",
    "langle": "\u27e8",
    "rangle": "\u27e9",
    "lbrace": "{",
    "rbrace": "}",
    "dots": "\u2026",
    "ldots": "\u2026",
    "cdots": "\u22ef",
    "vdots": "\u22ee",
    "ast": "\u2217",
    "star": "\u22c6",
    "bullet": "\u2219",
    "oplus": "\u2295",
    "otimes": "\u2297",
    "sum": "\u2211",
    "prod": "\u220f",
    "int": "\u222b",
    "partial": "\u2202",
    "nabla": "\u2207",
    "ell": "\u2113",
    "hbar": "\u0127",
    "aleph": "\u2135",
    "therefore": "\u2234",
    "square": "\u25a1",
    "backslash": "\\",
    "quad": "  ",
    "qquad": "    ",
    **{name: name for name in FUNCTIONS.split()},
    **{
        name: unicodedata.lookup(
            f"GREEK {'CAPITAL' if name[0].isupper() else 'SMALL'} LETTER "
            # Unicode spells this one without its b
            + name.upper().replace("LAMBDA", "LAMDA")
        )
        for name in GREEK.split()
    },
}
"""What a macro without arguments reads as; macros that are not here vanish."""

SIGNS = {",": " ", ";": " ", ":": " ", " ": " ", "\n": " ", "\\": "\n"} | {
    sign: sign for sign in "%$#_&{}"
}
"""What a backslash before a sign reads as."""

ACCENTS = {
    "hat": "\u0302",
    "tilde": "\u0303",
    "dot": "\u0307",
    "ddot": "\u0308",
    "bar": "\u0305",
    "vec": "\u20d7",
    "not": "\u0338",
}
DROPPED_ARGUMENT = {"color", "textcolor", "hspace", "vspace", "label"}
"""Macros whose argument says nothing about the answer."""

LETTERS = re.compile(r"[A-Za-z]+")

MATRICES = {"array", "pmatrix", "bmatrix", "smallmatrix", "psmallmatrix", "bsmallmatrix"}


class Unreadable(ValueError):
    """Text that is too long or too deep to be rendered."""


def latex_to_text(latex: str) -> str:
    """The text of a LaTeX expression; raises Unreadable past the limits."""
    if len(latex) > MAX_CHARS:
        raise Unreadable(f"{len(latex)} characters")
    return _Reader(latex).until("")


class _Reader:
    """Walks over LaTeX once, from left to right."""

    def __init__(self, latex: str) -> None:
        self._latex = latex
        self._at = 0
        self._depth = 0

    def until(self, closer: str) -> str:
        """The text up to `closer` (which is passed over) or the end."""
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise Unreadable(f"more than {MAX_DEPTH} levels of braces")
        parts: list[str] = []
        while self._at < len(self._latex):
            if closer and self._latex.startswith(closer, self._at):
                self._at += len(closer)
                break
            parts.append(self._next())
        self._depth -= 1
        return "".join(parts)

    def _next(self) -> str:
        letter = self._latex[self._at]
        self._at += 1
        if letter == "\\":
            return self._macro()
        if letter == "{":
            return self.until("}")
        if letter == "}":
            return ""  # closes nothing
        if letter == "~":
            return " "
        return "   " if letter == "&" else letter

    def _macro(self) -> str:
        name = self._name()
        if not name[:1].isalpha():
            return SIGNS.get(name, "")
        self._skip_spaces()
        special = SPECIAL.get(name)
        if special is not None:
            return special(self)
        if name in ACCENTS:
            return self.argument() + ACCENTS[name]
        if name in DROPPED_ARGUMENT:
            self.argument()
            return ""
        return SYMBOLS.get(name, "")

    def _name(self) -> str:
        start = self._at
        named = LETTERS.match(self._latex, start)
        # without letters: a single sign, or nothing at the end
        self._at = named.end() if named else min(start + 1, len(self._latex))
        return self._latex[start : self._at]

    def _skip_spaces(self) -> None:
        while self._at < len(self._latex) and self._latex[self._at].isspace():
            self._at += 1

    def argument(self) -> str:
        """The text of the next group, or of the next single sign or macro."""
        self._skip_spaces()
        if self._at >= len(self._latex):
            return ""
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise Unreadable(f"more than {MAX_DEPTH} arguments in arguments")
        text = self._next()
        self._depth -= 1
        return text

    def option(self) -> str | None:
        """The text of `[...]` if one comes next."""
        if not self._latex.startswith("[", self._at):
            return None
        self._at += 1
        return self.until("]")

    def raw_group(self) -> str:
        """The next group as it is written: a name, or the columns of an array."""
        self._skip_spaces()
        if not self._latex.startswith("{", self._at):
            return ""
        stop = self._latex.find("}", self._at)
        stop = len(self._latex) if stop < 0 else stop
        content = self._latex[self._at + 1 : stop]
        self._at = stop + 1
        return content


def _fraction(reader: _Reader) -> str:
    numerator = reader.argument()
    return f"{numerator}/{reader.argument()}"


def _root(reader: _Reader) -> str:
    degree = reader.option()
    # a degree stays visible: the cube root of 5 is not its square root
    return f"\u221a{'' if degree is None else f'[{degree}]'}({reader.argument()})"


def _overline(reader: _Reader) -> str:
    content = reader.argument()
    # over digits it means that they repeat; over letters it is a segment or a conjugate
    return "".join(digit + "\u0305" for digit in content) if content.isdigit() else content


def _blackboard(reader: _Reader) -> str:
    content = reader.argument()
    for kind in ("DOUBLE-STRUCK CAPITAL", "MATHEMATICAL DOUBLE-STRUCK CAPITAL"):
        try:
            return unicodedata.lookup(f"{kind} {content}")
        except KeyError:
            continue
    return content


def _mbox(reader: _Reader) -> str:
    content = reader.argument()
    return "" if content.startswith(" ") else content  # with a space before it: a unit


def _environment(reader: _Reader) -> str:
    name = reader.raw_group()
    if name == "array":
        reader.raw_group()
    content = reader.until("\\end{" + name + "}")
    if name not in MATRICES:
        return content
    rows = [" ".join(row.split()) for row in content.strip().split("\n")]
    return f"[ {'; '.join(rows)} ]"


def _end(reader: _Reader) -> str:
    reader.raw_group()
    return ""


SPECIAL: dict[str, Callable[[_Reader], str]] = {
    "frac": _fraction,
    "sqrt": _root,
    "overline": _overline,
    "mathbb": _blackboard,
    "mbox": _mbox,
    "begin": _environment,
    "end": _end,
}
"""Macros that do more than to stand for a sign or to wrap their argument."""
