import json
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tandem.config import DataConfig
from tandem.data.questions import questions_of
from tandem.data.read import read_table, split_slice
from tandem.errors import DataError

# the first two rows of gsm8k-test.jsonl, their questions shortened
GSM8K = [
    {
        "prompt": [
            {"role": "user", "content": "Put the answer within \\boxed{}.\n\nDucks lay 16."}
        ],
        "label": "18",
        "source": "gsm8k",
    },
    {
        "prompt": [{"role": "user", "content": "A robe takes 2 bolts of blue fiber."}],
        "label": "3",
        "source": "gsm8k",
    },
]


def write(folder, *lines, name="data.jsonl"):
    path = folder / name
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def numbered(folder, count):
    return write(folder, *(json.dumps({"n": n}) for n in range(count)))


def numbers(spec):
    return [row.fields["n"] for row in read_table(spec)]


def test_rows_come_with_the_line_they_stand_on_and_blank_lines_do_not_count(tmp_path):
    path = write(tmp_path, json.dumps(GSM8K[0]), "", "   ", json.dumps(GSM8K[1]))
    table = read_table(path)
    assert [row.where for row in table] == [f"{path}, line 1", f"{path}, line 4"]
    assert [row.fields for row in table] == GSM8K


@given(
    start=st.none() | st.integers(-12, 12),
    stop=st.none() | st.integers(-12, 12),
)
def test_a_slice_is_pythons_slice(tmp_path_factory, start, stop):
    folder = tmp_path_factory.mktemp("slices")
    path = numbered(folder, 9)
    wanted = list(range(9))[start:stop]
    spec = f"{path}@[{'' if start is None else start}:{'' if stop is None else stop}]"
    if wanted:
        assert numbers(spec) == wanted
    else:
        with pytest.raises(DataError, match="holds no rows"):
            read_table(spec)


def test_a_slice_that_cannot_be_read_is_said_and_an_at_sign_in_a_name_is_not_one():
    with pytest.raises(DataError, match=r"wanted path@\[start:stop\]"):
        split_slice("data.jsonl@[1:2:3]")
    with pytest.raises(DataError, match="no number"):
        split_slice("data.jsonl@[-:3]")
    assert split_slice("me@home.jsonl") == ("me@home.jsonl", None)


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ('{"n": 1', "not JSON"),
        ("[1, 2]", "this is a list"),
        ("nothing", "not JSON"),
        ("[" * 100_000, "not JSON"),
    ],
)
def test_a_broken_line_names_file_line_and_fault(tmp_path, line, what):
    path = write(tmp_path, '{"n": 0}', "", line, '{"n": 2}')
    with pytest.raises(DataError) as caught:
        read_table(path)
    assert f"{path}, line 3" in str(caught.value)
    assert what in str(caught.value)
    assert "--skip-bad-lines" in str(caught.value)
    skipped = read_table(path, skip_bad_lines=True)
    assert [row.fields["n"] for row in skipped] == [0, 2]


def test_bytes_that_are_no_text_are_a_broken_line_and_a_byte_order_mark_is_none(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"n": 0}\r\n{"n": "\xff"}\n')
    assert read_table(str(path), skip_bad_lines=True)[0].fields == {"n": 0}
    with pytest.raises(DataError, match="line 2: not UTF-8"):
        read_table(str(path))


def test_a_unicode_line_separator_inside_a_string_ends_no_line(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps({"n": "a\u2028b"}, ensure_ascii=False) + "\n", encoding="utf-8")
    assert [row.fields["n"] for row in read_table(str(path))] == ["a\u2028b"]


def test_a_missing_file_another_suffix_and_an_empty_file_are_said(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        read_table(str(tmp_path / "no.jsonl"))
    with pytest.raises(DataError, match=r"'\.csv'; wanted \.jsonl"):
        read_table(write(tmp_path, "a,b", name="data.csv"))
    with pytest.raises(DataError, match="holds no rows"):
        read_table(write(tmp_path, ""))


def test_parquet_reads_as_the_same_rows_with_slices(tmp_path):
    path = str(tmp_path / "data.parquet")
    pq.write_table(pa.Table.from_pylist(GSM8K * 3), path)
    assert [row.fields for row in read_table(path)] == GSM8K * 3
    assert [row.fields for row in read_table(path + "@[-1:]")] == [GSM8K[1]]
    window = [row.where for row in read_table(path + "@[2:4]")]
    assert window == [f"{path}, row 3", f"{path}, row 4"]


def test_a_file_that_is_no_parquet_is_said(tmp_path):
    with pytest.raises(DataError, match="cannot be read as parquet"):
        read_table(write(tmp_path, "text", name="data.parquet"))


def test_parquet_without_pyarrow_names_the_extra(tmp_path, monkeypatch):
    path = str(tmp_path / "data.parquet")
    pq.write_table(pa.Table.from_pylist(GSM8K), path)
    monkeypatch.setitem(sys.modules, "pyarrow", None)  # None: the import fails, as if not installed
    with pytest.raises(DataError, match=r"tandem-rl\[parquet\]"):
        read_table(path)


def test_a_missing_key_names_the_keys_that_are_there(tmp_path):
    table = read_table(write(tmp_path, json.dumps(GSM8K[0])))
    with pytest.raises(DataError) as caught:
        questions_of(table, DataConfig(input_key="question"))
    assert "line 1 has no key 'question'; its keys are: 'prompt', 'label', 'source'" in str(
        caught.value
    )
    with pytest.raises(DataError, match=r"'answer'.*--label-key"):
        questions_of(table, DataConfig(input_key="prompt", label_key="answer"))


def test_rows_without_a_key_are_left_out_when_asked_unless_all_are(tmp_path):
    table = read_table(write(tmp_path, '{"input": "a"}', '{"other": 1}'))
    assert len(questions_of(table, DataConfig(), skip_bad_lines=True)) == 1
    with pytest.raises(DataError, match="no key 'inputs'"):
        questions_of(table, DataConfig(input_key="inputs"), skip_bad_lines=True)


@pytest.mark.parametrize(
    "row",
    [
        {"input": None},
        {"input": []},
        {"input": [{"content": "no role"}]},
        {"input": 3},
        {"input": "\ud800"},
        {"input": "a", "metadata": [1]},
        {"input": "a", "metadata": "{not json"},
        {"input": "a", "tools": "{not json"},
        {"input": "a", "tools": {"name": "one"}},
    ],
)
def test_a_value_of_the_wrong_kind_is_an_error_with_its_line(tmp_path, row):
    table = read_table(write(tmp_path, json.dumps(row)))
    with pytest.raises(DataError, match=r"data\.jsonl, line 1"):
        questions_of(table, DataConfig())


def test_tools_and_metadata_may_be_json_strings_and_tools_reach_the_metadata(tmp_path):
    tools = [{"type": "function", "function": {"name": "add"}}]
    rows = [
        {"input": "a", "tools": tools, "metadata": {"level": 3}},
        {"input": "a", "tools": json.dumps(tools), "metadata": '{"level": 3}'},
    ]
    table = read_table(write(tmp_path, *map(json.dumps, rows)))
    for question in questions_of(table, DataConfig()):
        assert question.tools == tools
        assert question.metadata == {"level": 3, "tools": tools}


def test_label_is_read_only_when_its_column_is_named(tmp_path):
    table = read_table(write(tmp_path, json.dumps(GSM8K[0])))
    assert questions_of(table, DataConfig(input_key="prompt"))[0].label is None
    assert questions_of(table, DataConfig(input_key="prompt", label_key="label"))[0].label == "18"
