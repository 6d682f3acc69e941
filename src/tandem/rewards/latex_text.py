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
CODES = """
epsilon=03f5 varepsilon=03b5 phi=03d5 varphi=03c6 infty=221e cup=222a cap=2229 cdot=00b7
times=00d7 div=00f7 pm=00b1 mp=2213 le=2264 leq=2264 leqslant=2a7d ge=2265 geq=2265
geqslant=2a7e ne=2260 neq=2260 approx=2248 equiv=2261 sim=223c simeq=2243 cong=2245
propto=221d in=2208 notin=2209 subset=2282 subseteq=2286 supset=2283 supseteq=2287
setminus=2216 emptyset=2205 varnothing=2205 forall=2200 exists=2203 neg=00ac lnot=00ac
wedge=2227 land=2227 vee=2228 lor=2228 to=2192 rightarrow=2192 leftarrow=2190
leftrightarrow=2194 Rightarrow=21d2 implies=21d2 Leftrightarrow=21d4 iff=21d4 mapsto=21a6
circ=2218 degree=00b0 textdegree=00b0 angle=2220 triangle=25b3 perp=22a5 parallel=2225
lfloor=230a rfloor=230b lceil=2308 rceil=2309 langle=27e8 rangle=27e9 dots=2026 ldots=2026
cdots=22ef vdots=22ee ast=2217 star=22c6 bullet=2219 oplus=2295 otimes=2297 sum=2211 prod=220f
int=222b partial=2202 nabla=2207 ell=2113 hbar=0127 aleph=2135 therefore=2234 square=25a1
"""
"""Macros that read as one sign, and its code in Unicode."""

SYMBOLS = {
    "lt": "<",
    "gt": ">",
    "prime": "'",
    "mid": "|",
    "vert": "|",
    "lvert": "|",
    "rvert": "|",
    "lbrace": "{",
    "rbrace": "}",
    "backslash": "\\",
    "quad": "  ",
    "qquad": "    ",
    **{name: chr(int(code, 16)) for name, code in (one.split("=") for one in CODES.split())},
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
