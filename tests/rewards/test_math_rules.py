"""The dialect's rules for mathematical answers, case by case."""

import pytest

from tandem.rewards import algebra
from tandem.rewards.boxes import last_box
from tandem.rewards.expressions import is_expression_equal, plain_form
from tandem.rewards.grade import Answer, grade
from tandem.rewards.latex_text import Unreadable, latex_to_text
from tandem.rewards.mathd import is_mathd_equal, mathd_form


def verdict(rm_type, response, label):
    return grade(Answer(rm_type=rm_type, response=response, label=label), algebra)


@pytest.mark.parametrize(
    ("text", "content"),
    [
        (r"so \boxed{5}", "5"),
        (r"\boxed{1} then \boxed{2}", "2"),
        (r"\boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        (r"\boxed{\boxed{3}}", "3"),
        (r"\boxed{1} and \boxed{2", None),  # the last one never closes
        (r"\boxed 5", None),
        (r"\boxed {5}", None),
        (r"\fbox{5}", None),
        (r"\boxed{}", ""),
        ("no box", None),
    ],
)
def test_the_last_box_counts_and_must_close(text, content):
    assert last_box(text) == content


@pytest.mark.parametrize(
    ("response", "label", "reward"),
    [
        (r"<think>x</think> \boxed{5}", "5", 1),
        (r"\boxed{5}", "5", 0),  # no mark: nothing counts
        (r"\boxed{5} </think> five", "5", 0),  # the box stands before the end of thought
        (r"</think> \boxed{4} </think> \boxed{5}", "5", 1),  # the last mark
        (r"</think> \boxed{5} </think> done", "5", 0),
        (r"###Response \boxed{5}", "5", 1),
        (r"###Response \boxed{5} ###Response \boxed{6}", "5", 1),  # up to the next one
        (r"###Response nothing ###Response \boxed{5}", "5", 0),
        (r"</think> \fbox{5}", "5", 0),
        (r"</think> \boxed{5", "5", 0),
        (r"</think> \boxed{5}", "", 0),
        (r"</think> \boxed{5}", 5, 1),
        (r"</think> \boxed{5}", 5.0, 1),
        (r"</think> \boxed{0}", 0, 1),  # here 0 is a label like another
        (r"</think> \boxed{5}", r"\boxed{5}", 1),
        (r"</think> \boxed{5}", r"so \boxed{5", 0),
        ("</think> no box", None, 0),  # no answer: the label is not looked at
    ],
)
def test_deepscaler_judges_the_box_after_the_thought(response, label, reward):
    said = verdict("deepscaler", response, label)
    assert said == reward
    assert type(said) is int


def test_deepscaler_refuses_a_label_that_is_no_string_or_number():
    for label in (None, ["5"], {"a": 1}):
        with pytest.raises(ValueError, match="string or a number"):
            verdict("deepscaler", r"</think>\boxed{5}", label)


@pytest.mark.parametrize(
    ("response", "label", "reward"),
    [
        (r"\boxed{5}", "5", 1),
        (r"thinking \boxed{4}, no, \boxed{5}", "5", 1),
        (r"\boxed{5} and \boxed{4", "5", 0),
        (r"\boxed{0}", 0, 0),  # a falsy label is never met
        (r"\boxed{0}", 0.0, 0),
        (r"\boxed{}", "", 0),
        (r"\boxed{None}", None, 0),
        (r"\boxed{0}", "0", 1),
        (r"\boxed{5}", 5, 1),
        (r"\boxed{5}", r"the answer is \boxed{5}", 1),
        (r"\boxed{5}", r"\boxed{5", 0),
        (r"\fbox{5}", "5", 0),
        ("5", "5", 0),
    ],
)
def test_math_judges_the_last_box_of_the_whole_response(response, label, reward):
    said = verdict("math", response, label)
    assert said == reward
    assert type(said) is int


@pytest.mark.parametrize(
    ("answer", "form"),
    [
        (r"\text{ odd }", "odd"),
        (r"\dfrac{1}{2}", r"\frac{1}{2}"),
        (r"\tfrac12", r"\frac{1}{2}"),
        (r"\frac1{72}", r"\frac{1}{72}"),
        (r"\sqrt3", r"\sqrt{3}"),
        (r"\left( 1, 2 \right)", "(1,2)"),
        (r"90^\circ", "90"),
        (r"90^{\circ}", "90"),
        (r"\$18", "18"),
        (r"10\%", "10"),
        (r"1,\!000", "1,000"),
        (r"5\text{ cm}", "5"),
        (".5", r"\frac{1}{2}"),
        ("0.5", r"\frac{1}{2}"),
        ("3/4", r"\frac{3}{4}"),
        ("-3/4", r"\frac{-3}{4}"),
        ("03/4", "03/4"),
        ("x/4", "x/4"),
        ("x = 5", "5"),
        ("xy=5", "5"),
        ("abc=5", "abc=5"),
        ("a=b=5", "a=b=5"),
        ("", ""),
        (r"\sqrt", r"\sqrt"),
        (r"5\text{ a}\text{ b} ", r"5\text{ a}\text{ b}"),
    ],
)
def test_mathd_cleans_an_answer_up(answer, form):
    assert mathd_form(answer) == form


def test_mathd_equality_is_equality_of_the_clean_strings():
    assert is_mathd_equal(r"\frac12", "1/2")
    assert not is_mathd_equal("2/4", "1/2")


@pytest.mark.parametrize(
    ("given", "truth", "is_equal"),
    [
        ("2/4", "1/2", False),  # plain fractions are compared as text
        (r"\frac{2}{4}", "1/2", False),
        ("2+2", "4", False),  # an integer is not met by a sum
        ("4.0", "4", True),
        ("1,000", "1000", True),
        ("1,000,000", "1000000", True),
        ("1,234,567,890", "1234567890", True),
        ("1,00", "100", False),
        ("12 meters", "12", True),
        ("12 centimeters^2", "12", True),
        ("3 hours", "3", True),
        ("12 feet", "12", True),
        ("$5", "5", True),
        ("5%", "5", True),
        ("ODD", "odd", True),
        (r"\text{Odd}", "odd", True),
        ("3 1/2", "7/2", True),
        (r"3\frac{1}{2}", r"\frac{7}{2}", True),
        (r"3\frac{1}{2}", "3.5", True),
        ("0.25", "1/4", True),
        ("0.333333", "1/3", False),
        ("- 5", "-5", True),
        ("5 million", "5*10^6", True),
        ("1 and 2", "1,2", True),
        ("2 or 1", "1,2", False),
        ("(1,2)", "(1,2)", True),
        ("(1, 2.0)", "(1,2)", True),
        ("[1,2]", "(1,2)", False),
        ("(2,1)", "(1,2)", False),
        ("(1,2,3)", "(1,2)", False),
        ("(1/2,x)", r"(\frac{1}{2}, x)", True),
        ("(0.5,x)", "(1/2,x)", True),
        ("[0,1)", "[0, 1)", True),
        (r"(-\infty, 3)", r"(-\infty,3)", True),
        ("x^2+2x+1", "(x+1)^2", True),
        ("2x", "x*2", True),
        (r"2\pi", "pi*2", True),
        (r"\frac{\sqrt{2}}{2}", r"\frac{1}{\sqrt{2}}", True),
        ("3sqrt(2)", r"3\sqrt{2}", True),
        ("a+b+c", "c+b+a", False),  # three unknowns are not evaluated
        ("x^10", "x^9*x", False),  # nor is a large power
        ("2**3", "8", False),
        ("", "5", False),
        ("x+1", "x+2", False),
        ("x.y", "xy", False),
    ],
)
def test_expressions_are_equal_by_the_dialects_rules(given, truth, is_equal):
    assert is_expression_equal(given, truth, algebra.is_zero) is is_equal


def test_long_integers_keep_all_their_digits():
    assert plain_form("12345678901234567891") == "12345678901234567891"
    assert plain_form("12,345,678,901,234,567,891") == "12345678901234567891"
    assert not is_expression_equal("12345678901234567891", "12345678901234567890", algebra.is_zero)


@pytest.mark.parametrize(
    ("latex", "text"),
    [
        (r"\frac{1}{2}", "1/2"),
        (r"\frac12", "1/2"),
        (r"\frac{a+b}{c}", "a+b/c"),  # flat, as in the dialect
        (r"\sqrt{2}", "\u221a(2)"),
        (r"\sqrt2", "\u221a(2)"),
        (r"\sqrt[3]{5}", "\u221a[3](5)"),
        (r"\left( 3, \frac{\pi}{2} \right)", "( 3, \u03c0/2 )"),
        (r"a \times b", "a \u00d7b"),
        (r"1\,000", "1 000"),
        (r"\text{ cm}", " cm"),
        (r"5\mbox{ miles}", "5"),
        (r"\mbox{odd}", "odd"),
        (r"\mathbb{R}", "\u211d"),
        (r"\cot x", "cotx"),
        (r"\overline{AB}", "AB"),
        (r"\begin{pmatrix} -7 \\ 16 \end{pmatrix}", "[ -7; 16 ]"),
        (r"\begin{array}{cc} 1 & 2 \end{array}", "[ 1 2 ]"),
        (r"\color{red}5", "5"),
        (r"\unknown{x}", "x"),
        ("{", ""),
        ("a}b", "ab"),
        ("\\", ""),
    ],
)
def test_latex_reads_as_one_line_of_text(latex, text):
    assert latex_to_text(latex) == text


def test_repeating_digits_are_not_the_digits():
    assert latex_to_text(r"0.\overline{3}") != "0.3"


def test_text_that_is_too_deep_or_too_long_is_refused_without_a_crash():
    for latex in ("{" * 100_000, r"\frac" * 1000, "x" * 100_000, "\\sqrt[" * 1500):
        with pytest.raises(Unreadable):
            latex_to_text(latex)
    assert plain_form("\\" + "{" * 100_000 + "5" + "}" * 100_000) == "\\5"


@pytest.mark.parametrize(
    "expression",
    [
        "9**9**9**9",
        "x**(9**9)",
        "((((9^9)^9)^9)^9)^9",
        "9999999!",
        "5!!!",
        "(99!)!",
        "1e99999",
        "x.y",
        "__a__",
        "x[0]",
        "'a'*9",
        "a:b",
        "a#b",
        "a;b",
        "1" * 3000,
        "(" * 60 + "x" + ")" * 60,
        "x" * 2000,
    ],
)
def test_what_could_hang_or_run_code_never_reaches_the_parser(expression):
    assert not algebra.is_safe(expression)
    assert algebra.is_zero(expression) is False


def test_names_of_python_mean_nothing_in_an_expression():
    assert algebra.is_zero("id(x)-id*x")  # two unknowns and a product, no function call


def test_every_label_of_the_sample_is_met_by_itself():
    # labels of math-500.jsonl
    labels = [
        r"\left( 3, \frac{\pi}{2} \right)",
        "p - q",
        r"\frac{14}{3}",
        r"\text{Evelyn}",
        r"3\sqrt{13}",
        r"\begin{pmatrix} -1/3 \\ 2/3 \\ 5/3 \end{pmatrix}",
        r"(-\infty, 2) \cup (3, \infty)",
        r"11\sqrt2",
        r"1,\!000",
        r"x \in [-2,7]",
        r"6 - 5i",
    ]
    for label in labels:
        assert verdict("math", rf"so \boxed{{{label}}}", label) == 1
        assert verdict("math", r"so \boxed{77}", label) == 0
