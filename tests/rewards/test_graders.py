"""dapo, f1, gpqa, random, math_verify, and the names themselves."""

import pytest

from tandem.errors import ConfigError
from tandem.rewards import algebra
from tandem.rewards.grade import Answer, check_rm_type, draw, grade
from tandem.rewards.string_graders import grade_dapo, grade_f1, grade_gpqa, minerva_form


def verdict(rm_type, response, label=None, **metadata):
    answer = Answer(rm_type=rm_type, response=response, label=label, metadata=metadata, key="k")
    return grade(answer, algebra)


def test_dapo_takes_the_last_answer_line():
    assert grade_dapo("Answer: 4\nno\nanswer : 5", "5") == {"score": 1.0, "acc": True, "pred": "5"}
    assert grade_dapo("Answer: 4", "5") == {"score": -1.0, "acc": False, "pred": "4"}


def test_dapo_without_an_answer_line_predicts_invalid():
    assert grade_dapo("the answer is 5", "5") == {"score": -1.0, "acc": False, "pred": "[INVALID]"}


def test_dapo_reads_the_last_300_characters_only():
    assert grade_dapo("Answer: 5" + "\n" + "x" * 290, "5")["acc"]
    assert not grade_dapo("Answer: 5" + "\n" + "x" * 300, "5")["acc"]


@pytest.mark.parametrize(
    ("label", "is_met"),
    [("5", True), (5, True), ("5.0", True), (5.9, True), ("x = 5", True), ("1,000", False)],
)
def test_dapo_labels_are_integers(label, is_met):
    assert grade_dapo("Answer: 5", label)["acc"] is is_met


@pytest.mark.parametrize("label", ["five", None, "", "inf", "nan", "\\frac{1}{2}"])
def test_dapo_refuses_a_label_that_is_no_number(label):
    with pytest.raises(ValueError, match="must be a number"):
        grade_dapo("Answer: 5", label)


@pytest.mark.parametrize(
    ("answer", "form"),
    [
        ("x = 5", "5"),
        ("$\\boxed{5}$", "5"),
        ("5 dollars", "5"),
        ("12,345", "12345"),
        ("\\frac12", "\\frac{1}{2}"),
        ("\\sqrt2", "\\sqrt{2}"),
        ("\\text{odd}", "odd"),
        ("5^\\circ", "5"),
        ("an apple or a pear", "appleorpear"),
        ("the $x$ and $y$", "x"),
        ("5<|im_end|>", "5"),
        ("x \\text{and} y", "x,y"),
        ("5 \\text{and} 6", "56"),  # digits and commas only: one number
        ("5\\text{ cm}^2", "5"),
        ("[INVALID]", "[INVALID]"),
    ],
)
def test_the_minerva_clean_up(answer, form):
    assert minerva_form(answer) == form


def test_dapos_strict_box_compares_the_text_of_the_last_100_characters():
    assert grade_dapo("\\boxed{5}", "5", is_strict_box=True) == {
        "score": 1.0,
        "acc": True,
        "pred": "5",
    }
    assert grade_dapo("\\boxed{5.0}", "5", is_strict_box=True)["score"] == -1.0
    assert grade_dapo("\\boxed{5}" + "x" * 100, "5", is_strict_box=True)["pred"] is None
    assert verdict("dapo", "\\boxed{5}", "5", strict_box_verify=True)["acc"]


@pytest.mark.parametrize(
    ("response", "label", "score"),
    [
        ("The Eiffel Tower!", "eiffel tower", 1.0),
        ("tower", "eiffel tower", 2 / 3),
        ("paris", "rome", 0.0),
        ("", "rome", 0.0),
        ("yes", "Yes.", 1.0),
        ("yes it is", "yes", 0.0),  # yes, no and noanswer must be met exactly
        ("no", "no way", 0.0),
        (None, "rome", 0.0),
        ("12", 12, 1.0),
        ("a b b", "b b c", 0.8),
    ],
)
def test_f1_is_the_overlap_of_words(response, label, score):
    assert grade_f1(response, label) == pytest.approx(score)


CHOICES = ["water", "carbon dioxide", "iron", "5 m/s"]


@pytest.mark.parametrize(
    ("response", "label", "metadata", "reward"),
    [
        ("The answer is B", "B", {}, 1.0),
        ("The answer is C", "B", {}, 0.0),
        ("answer: b", "B", {}, 1.0),
        ("B is the correct one", "B", {}, 1.0),
        ("D is correct. Final answer B", "B", {}, 1.0),  # "answer" is looked for first
        ("The answer is: B", "B", {}, 0.0),  # the dialect reads the I of "is"
        ("The answer is: B", "B", {"choices": CHOICES}, 1.0),  # of four choices none is I
        ("So A or B, rather B.", "B", {}, 1.0),  # the last lone capital
        ("<think>The answer is A</think> B", "B", {}, 1.0),
        ("The answer is K, no, B", "B", {}, 1.0),  # not a valid letter: the next rule
        ("The answer is K", "K", {"valid_letters": ["J", "k"]}, 1.0),
        ("The answer is B", 1, {}, 1.0),
        ("The answer is B", 1, {"correct_letter": "A"}, 1.0),  # a number is a place
        ("The answer is A", "B", {"correct_letter": "a "}, 1.0),
        ("The answer is B", "carbon dioxide", {"choices": CHOICES}, 1.0),
        ("The answer is B", "Carbon-Dioxide", {"choices": {"x": "water", "y": CHOICES[1]}}, 1.0),
        ("it is carbon dioxide", "carbon dioxide", {}, 1.0),
        ("it is carbon", "carbon dioxide", {}, 0.0),
        ("it flows at 5 m/s.", 3, {"choices": CHOICES}, 1.0),
        ("it is iron", None, {"correct_answer": "Iron"}, 1.0),
        ("it is iron", None, {"answer_text": "Iron"}, 1.0),
        ("the answer is Z", "z", {}, 1.0),  # no valid letter: its text is looked for
        ("", "B", {}, 0.0),
        (None, "B", {}, 0.0),
    ],
)
def test_gpqa_finds_the_letter_or_else_the_text(response, label, metadata, reward):
    said = grade_gpqa(response, label, metadata)
    assert said == reward
    assert type(said) is float


def test_gpqa_leaves_the_metadata_as_it_was():
    metadata = {"choices": CHOICES}
    grade_gpqa("B", "carbon dioxide", metadata)
    assert metadata == {"choices": CHOICES}


@pytest.mark.parametrize(
    ("answer", "label", "reward"),
    [
        ("5", "5", 1.0),
        ("5", "6", 0.0),
        ("2/4", "1/2", 1.0),
        ("2+2", "4", 1.0),
        ("(1,2)", "(2,1)", 0.0),
        ("10\\%", "0.1", 1.0),
        ("\\frac{1+x}{2}", "(x+1)/2", 1.0),
        ("x=5", "5", 1.0),
        ("9^{9^{9^{9}}}", "5", 0.0),
        ("9^{9^{9^{9}}}", "9^{9^{9^{9}}}", 1.0),  # the same text needs no arithmetic
    ],
)
def test_math_verify_understands_the_last_box(answer, label, reward):
    said = verdict("math_verify", f"\\boxed{{1}} or <think></think> \\boxed{{{answer}}}", label)
    assert said == reward
    assert type(said) is float


def test_math_verify_wants_a_label_and_a_box():
    assert verdict("math_verify", "5", "5") == 0.0
    assert verdict("math_verify", "\\boxed{5}", "\\boxed{5}") == 1.0
    for label in (None, "", " "):
        with pytest.raises(ValueError, match="no label"):
            verdict("math_verify", "\\boxed{5}", label)


def test_boxed_in_front_judges_the_content_of_the_last_box():
    assert verdict("boxed_gpqa", "The answer is A \\boxed{B}", "B") == 1.0
    assert verdict("boxed_f1", "many words \\boxed{eiffel tower}", "Eiffel Tower") == 1.0
    assert verdict("boxed_f1", "eiffel tower", "eiffel tower") == 0.0  # no box: nothing
    assert verdict("boxed_dapo", "\\boxed{Answer: 5}", 5)["acc"]
    assert verdict("boxed_math", "\\boxed{5}", "5") == 0  # a box in the box is wanted


def test_random_is_zero_or_one_and_repeats():
    drawn = [draw(str(nth)) for nth in range(1000)]
    assert set(drawn) == {0, 1}
    assert 400 < sum(drawn) < 600
    assert drawn == [draw(str(nth)) for nth in range(1000)]
    assert verdict("random", "anything") in (0, 1)


def test_names_are_checked_with_a_suggestion_and_a_reason():
    for name in ("deepscaler", "math", "boxed_math", "remote_rm", "math_verify", "random"):
        check_rm_type(name)
    with pytest.raises(ConfigError, match="did you mean deepscaler"):
        check_rm_type("deepscalar")
    with pytest.raises(ConfigError, match=r"ifbench is refused: .*fetched from the network"):
        check_rm_type("ifbench")


def test_a_response_that_is_none_is_an_error_where_the_dialect_has_no_rule_for_it():
    with pytest.raises(ValueError, match="no response"):
        verdict("math", None, "5")
