"""Constraints on the command line: `infer`, `answer`, and lmms-eval's settings."""

import json

import pytest
from helpers import run

from diffusionvl.evaluation import AR, BLOCK_DIFFUSION
from diffusionvl.evaluation.settings import resolve
from diffusionvl.modeling.errors import UserError

SCHEMA = {"type": "object", "properties": {"a": {"enum": ["x", "y"]}}, "required": ["a"], "additionalProperties": False}


@pytest.fixture
def infer(translated_dir, capsys):
    def call(*argv):
        return run(capsys, "infer", "--model", translated_dir, "--prompt", "hi", "--device", "cpu", "--json", *argv)

    return call


def test_infer_takes_files_lists_and_expressions(infer, tmp_path):
    (tmp_path / "schema.json").write_text(json.dumps(SCHEMA), encoding="utf-8")
    (tmp_path / "grammar.lark").write_text('start: "é" ("x" | "y")\n', encoding="utf-8")
    for argv, expected in (
        (["--json-schema", str(tmp_path / "schema.json")], ['{"a": "x"}', '{"a": "y"}']),
        (["--grammar", str(tmp_path / "grammar.lark")], ["éx", "éy"]),
        (["--choices", "one, two"], ["one", "two"]),
        (["--choices", '["one, two"]'], ["one, two"]),
        (["--regex", "[ab]c"], ["ac", "bc"]),
    ):
        code, out, err = infer(*argv)
        assert (code, err) == (0, "")
        assert json.loads(out)["answer"] in expected
    code, out, _ = infer("--json-object", "--max-new-tokens", "3")
    assert json.loads(out)["answer"].startswith("{")


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--json-schema", "/none.json"], "--json-schema '/none.json': no such file; give a file that holds it"),
        (["--grammar", 'start: "a"'], "no such file; give a file that holds it"),
        (["--choices", "a,,b"], "--choices must be a list of texts that are not empty, got ['a', '', 'b']"),
        (["--choices", '["a"'], "--choices must be a list of texts that are not empty, got '[\"a\"'"),
        (["--choices", "[1]"], "--choices must be a list of texts"),
        (["--regex", "("], "regex cannot be used: "),
        (["--regex", "a", "--choices", "b"], "regex and choices constrain the same answer; give one of them"),
    ],
)
def test_what_cannot_be_used_is_one_line(infer, argv, said):
    code, out, err = infer(*argv)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert said in err


def test_a_file_in_another_encoding_is_refused(infer, tmp_path):
    (tmp_path / "schema.json").write_bytes(b'{"const": "\xe9"}')
    code, _, err = infer("--json-schema", str(tmp_path / "schema.json"))
    assert code == 2
    assert "is not UTF-8" in err


def test_answer_writes_choices(translated_dir, capsys, tmp_path):
    turn = {"role": "user", "content": [{"type": "text", "text": "is it red?"}]}
    (tmp_path / "records.jsonl").write_text(json.dumps({"messages": [turn]}) + "\n", encoding="utf-8")
    argv = ["answer", str(tmp_path / "records.jsonl"), "--model", translated_dir, "--out", str(tmp_path / "out.jsonl")]
    code, _, _ = run(capsys, *argv, "--choices", "yes,no")
    assert code == 0
    (line,) = (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(line)["answer"] in ("yes", "no")


def test_lmms_eval_gives_choices_to_block_diffusion_alone():
    for given in (["A", "B"], "A,B", '["A", "B"]'):
        assert resolve(BLOCK_DIFFUSION, 8, {"choices": given}, {}).generate["choices"] == ["A", "B"]
    assert "choices" not in resolve(BLOCK_DIFFUSION, 8, {}, {}).generate
    with pytest.raises(UserError, match="choices"):
        resolve(AR, None, {"choices": ["A"]}, {})
    with pytest.raises(UserError, match="choices must be"):
        resolve(BLOCK_DIFFUSION, 8, {"choices": '["A"'}, {})
