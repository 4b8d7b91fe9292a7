"""README and docs: every link leads somewhere, every command and flag that they name exists."""

import contextlib
import importlib
import io
import itertools
import re
import shlex
import sys
from functools import cache
from pathlib import Path
from unittest import mock

import pytest

from diffusionvl.cli import COMMANDS

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
SCRIPTS = (".py", ".sh", ".sbatch")
OURS = ("diffusionvl", "eval", "studies", "benchmarks")
FENCED = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
FLAG = re.compile(r"(?<![\w-])--[a-z][\w-]*")


def commands_of(text):
    """The commands of a page's code, a list of words each: lines of shell blocks and code inside sentences."""
    blocks = FENCED.findall(text)
    lines = "\n".join(block for language, block in blocks if language in ("", "sh")).replace("\\\n", " ").splitlines()
    inline = re.findall(r"`([^`]+)`", FENCED.sub("", text))
    for line in [*lines, *(" ".join(code.split()) for code in inline)]:
        for part in re.split(r"&&|\|\||[;|](?=\s)", re.sub(r"(^|\s)#.*", "", line.removeprefix("$ "))):
            with contextlib.suppress(ValueError):  # a quote that is left open: not a command
                words = shlex.split(part)
                while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                    words.pop(0)
                if words:
                    yield words


def target_of(words):
    """What a command line runs: (module, its further words), or (script, ...), or None where it is not ours."""
    if words[0] == "diffusionvl" and len(words) > 1 and words[1] in COMMANDS:
        return "diffusionvl.cli", words[1:]
    if words[:2] == ["python", "-m"] and words[2].split(".")[0] in OURS:
        return words[2], words[3:]
    if words[0] in ("python", "bash", "sbatch"):
        script = next((word for word in words[1:] if word.endswith(SCRIPTS)), None)
        return script and (script, words[words.index(script) + 1 :])
    return None


@cache
def code_files():
    """Paths of the repository's code."""
    folders = (*OURS, "scripts", "tests")
    paths = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.name.endswith(SCRIPTS)]
    return [path.relative_to(ROOT).as_posix() for path in paths]


@cache
def help_of(module, *words):
    """What a command prints for `--help`."""
    out = io.StringIO()
    page = "--help-all" if module == "diffusionvl.train" else "--help"  # its --help has the most important ones
    with (
        contextlib.redirect_stdout(out),
        contextlib.suppress(SystemExit),
        mock.patch.object(sys, "argv", [module, *words, page]),
    ):
        package = (ROOT / module.replace(".", "/")).is_dir()
        importlib.import_module(f"{module}.__main__" if package else module).main()
    return out.getvalue()


def known_flags(target, words):
    """Flags that a command takes; those of a script are the ones that its text has, and those of what it runs."""
    if target.endswith(SCRIPTS):
        text = (ROOT / target).read_text(encoding="utf-8")
        names = set(re.findall(r"(?<=-m )(?:eval|studies|diffusionvl)\.[\w.]+|(?<=bash )scripts/\w+\.sh", text))
        return {*FLAG.findall(text), *(flag for name in names - {target} for flag in known_flags(name, []))}
    # The words before the flags may name a subcommand: `data check`.
    heads = itertools.takewhile(re.compile("[a-z]+$").match, words)
    return set(FLAG.findall(help_of(target, *heads)))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    """A file that exists, and, in a page, a heading: its words in lower case, joined by dashes."""
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)", FENCED.sub("", page.read_text(encoding="utf-8"))):
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        if "://" in link or (target.exists() and not anchor):
            continue
        headings = re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8"), re.MULTILINE) if target.exists() else []
        if anchor not in [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings]:
            broken.append(link)
    assert broken == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_code_that_is_named_exists(page):
    """Files, as `x.py` or `folder/x.py`, and what `folder/x.py: name` says is in them."""
    text = FENCED.sub("", page.read_text(encoding="utf-8"))
    for named, inside in re.findall(r"`([\w./]+\.(?:py|sh|sbatch))(?:: ([\w.]+))?[`(]", text):
        paths = [path for path in code_files() if f"/{path}".endswith(f"/{named}")]
        assert paths, named
        assert not inside or any(inside.rpartition(".")[2] in (ROOT / path).read_text() for path in paths), inside


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_and_their_flags_exist(page):
    for words in commands_of(page.read_text(encoding="utf-8")):
        target = target_of(words)
        if target is None:
            continue
        name, rest = target
        folder = ROOT / name.replace(".", "/")
        places = [ROOT / name] if name.endswith(SCRIPTS) else [folder.with_suffix(".py"), folder / "__main__.py"]
        assert any(place.is_file() for place in places), f"{page.name}: {' '.join(words)}"
        # By its path, Python would find none of the folders that are not installed.
        assert not (name.endswith(".py") and name.split("/")[0] in OURS), f"{page.name}: run {name} by `python -m`"
        flags = {word.partition("=")[0].replace("_", "-") for word in rest if FLAG.match(word)}
        known = {flag.replace("_", "-") for flag in known_flags(name, rest)}
        assert flags <= known, f"{page.name}: {' '.join(words)}"
