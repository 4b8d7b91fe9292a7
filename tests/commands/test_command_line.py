"""What a user can mend is one line with exit code 2, in every command; a bug keeps its traceback."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from diffusionvl.commands.command_line import Parser, markdown, table
from diffusionvl.modeling.errors import UserError

ROOT = Path(__file__).parents[2]


def outcome(error, capsys, *argv):
    """Exit code and stderr of a command that raises an error."""

    def body(arguments):
        raise error

    code = Parser(prog="tool").run(body, argv)
    return code, capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (UserError("--size 3: give\n  1 or 2"), "tool: error: --size 3: give 1 or 2\n"),
        (FileNotFoundError(2, "No such file", "a.png"), "tool: error: [Errno 2] No such file: 'a.png'\n"),
        (OSError(28, "No space left on device"), "tool: error: [Errno 28] No space left on device\n"),
    ],
)
def test_what_a_user_can_mend_is_one_line(error, line, capsys):
    assert outcome(error, capsys) == (2, line)
    code, err = outcome(error, capsys, "--debug")
    assert code == 2
    assert err.startswith("Traceback (most recent call last)")
    assert err.endswith(line)


@pytest.mark.parametrize("error", [ValueError("x"), RuntimeError("x"), KeyError("x"), OSError("a library's own")])
def test_a_bug_keeps_its_traceback(error, capsys):
    with pytest.raises(type(error)):
        outcome(error, capsys)


def test_ctrl_c_is_one_line(capsys):
    assert outcome(KeyboardInterrupt(), capsys) == (130, "tool: interrupted\n")


def test_a_wrong_flag_is_one_line(capsys):
    with pytest.raises(SystemExit) as exit_:
        Parser(prog="tool").run(lambda arguments: None, ["--frog"])
    assert exit_.value.code == 2
    assert capsys.readouterr().err == "tool: error: unrecognized arguments: --frog; see tool --help\n"


def test_an_exit_code_of_a_command_is_its_own():
    assert Parser(prog="tool").run(lambda arguments: 1, []) == 1


MAINS = sorted(
    path.relative_to(ROOT).as_posix()
    for folder in ("diffusionvl", "eval", "studies", "benchmarks")
    for path in (ROOT / folder).rglob("*.py")
    if "\ndef main(" in path.read_text(encoding="utf-8")
)


@pytest.mark.parametrize("path", sorted({*MAINS} - {"diffusionvl/cli.py"}))
def test_every_command_reports_errors_in_this_way(path):
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    (main,) = (node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "main")
    called = {ast.unparse(node.func).rpartition(".")[2] for node in ast.walk(main) if isinstance(node, ast.Call)}
    assert called & {"run", "report_errors"}


def test_tables():
    rows = [["a", "1"], ["bcd", "22"]]
    assert table(["x", "n"], rows).splitlines() == ["x     n", "-" * 7, "a     1", "bcd  22"]
    assert markdown(["x", "n"], rows).splitlines() == ["| x | n |", "| --- | ---: |", "| a | 1 |", "| bcd | 22 |"]


def test_a_torchvision_that_does_not_fit_torch_is_named_with_the_remedy(tmp_path, monkeypatch):
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision/__init__.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    (tmp_path / "torchvision-9.9.dist-info").mkdir()
    (tmp_path / "torchvision-9.9.dist-info/METADATA").write_text(
        "Metadata-Version: 2.1\nName: torchvision\nVersion: 9.9\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    command = [sys.executable, "-m", "diffusionvl.cli", "translate", "base", "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "torchvision 9.9 and torch" in done.stderr
    assert "uninstall torchvision" in done.stderr
