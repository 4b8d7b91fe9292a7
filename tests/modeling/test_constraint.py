"""Where an answer stands in its grammar: what may come next, against a list of all texts; what is refused, and why."""

import itertools
import re
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import BertTokenizer, PreTrainedTokenizerFast
from transformers.dynamic_module_utils import get_imports

from diffusionvl.modeling import grammar
from diffusionvl.modeling.constraint import fill_bitmasks, unpack
from diffusionvl.modeling.errors import UserError
from diffusionvl.modeling.generation_configuration_diffusionvl import DiffusionVLGenerationConfig
from diffusionvl.modeling.grammar import compile_constraint

PIECES = ["a", "b", "c", "ab", "bc", "aa"]
MASK, IMAGE, EOS = 6, 7, 8


def byte_level(pieces=PIECES, added=("<think>",)):
    """Tokens 0 to 5 are text; a mask token, an image token, an end of sequence and an added token follow."""
    merges = [(piece[0], piece[1]) for piece in pieces if len(piece) == 2]
    backend = Tokenizer(models.BPE({piece: index for index, piece in enumerate(pieces)}, merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<mask>", "<image>", "<eos>"])
    backend.add_tokens([*added])
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>")


def build(tokenizer=None, eos_token_id=EOS, max_new_tokens=20, **constraint):
    settings = DiffusionVLGenerationConfig(eos_token_id=eos_token_id, max_new_tokens=max_new_tokens, **constraint)
    return compile_constraint(settings, byte_level() if tokenizer is None else tokenizer, [MASK, IMAGE])


def allowed(constraint, size=12):
    constraint.look([])
    return set(unpack(fill_bitmasks([constraint]), size)[0].nonzero()[:, 0].tolist())


@pytest.mark.parametrize(
    "regex", ["(a|ab)(c|bc)?", "a*b?c", "(abc){1,2}", "[ab]{2,4}", "aab|aac|c", "(aa|b)*", "a(bc)?|b"]
)
def test_what_may_come_next_is_what_a_list_of_all_texts_says(regex):
    """Every sequence of up to 3 tokens, with tokens that overlap; forced tokens are among what may come."""
    texts = ["".join(letters) for length in range(10) for letters in itertools.product("abc", repeat=length)]
    language = {text for text in texts if re.fullmatch(regex, text)}
    viable = {text[:end] for text in language for end in range(len(text) + 1)}
    tokenizer, seen = byte_level(), 0

    def explore(constraint, text, depth):
        nonlocal seen
        seen += 1
        fitting = {index for index, piece in enumerate(PIECES) if text + piece in viable}
        expected = fitting | ({EOS} if text in language else set())
        if constraint.forced:
            assert constraint.forced[0] in expected
            assert (text in language) == (constraint.forced[0] == EOS and not fitting)
        else:
            assert allowed(constraint) == expected
            assert {token for token in range(12) if constraint.accepts(token)} == expected
        for token in fitting if depth else ():
            ahead = constraint.copy()
            if ahead.accepts(token):
                ahead.advance(token)
                explore(ahead, text + PIECES[token], depth - 1)

    explore(build(tokenizer, regex=regex), "", 3)
    assert seen > 2


def test_forced_tokens_are_taken_up_to_the_longest_answer_and_a_complete_one_forces_its_end():
    constraint = build(regex="(abc){3}")
    assert constraint.take() == [3, 2, 3, 2, 3, 2, EOS]
    assert (constraint.length, constraint.ended, constraint.free) == (7, True, set())
    constraint = build(regex="(abc){3}", max_new_tokens=4)
    assert constraint.take() == [3, 2, 3, 2]
    assert (constraint.length, constraint.ended) == (4, False)


def test_a_grammar_without_an_end_is_refused():
    with pytest.raises(UserError, match="Too many items"):
        build(grammar='start: "c" start', max_new_tokens=7)


def test_tokens_drawn_side_by_side_are_taken_up_to_the_first_that_does_not_fit():
    constraint = build(regex="c(b|a)c[ab]c?")  # c is forced, then a choice, then c
    assert constraint.take() == [2]
    taken = constraint.settle([1, 0, 1, 0], [False, False, True, True])  # b, then c in the place of a, then b, not a
    assert (taken, constraint.length, constraint.free) == ([1, 2, 1], 4, {1, 3})
    constraint = build(regex="[ab]*")
    assert constraint.settle([0, 1, 0], [True, False, True]) == [0]  # the second is not kept
    assert constraint.settle([0, EOS, 0], [True] * 3) == [0, EOS]
    assert constraint.settle([0], [True]) == []


def test_drafts_are_mended_and_looked_through():
    constraint = build(regex="[ab]cccc[bc]")
    assert constraint.mend([1, 1, 1, 2, 0, 2, 0]) == [1, 2, 2, 2, 2, 2, EOS]  # after b, and the end after c
    assert constraint.mend([2, 1]) == []
    constraint.look([1, 2, 2, 0])
    assert constraint.plan == [None, 2, 2, 2]
    constraint.look([1, 2, 2, 2, 2])
    assert constraint.plan == [None, *[2] * 4, None]
    masks = unpack(fill_bitmasks([constraint]), 12)
    assert masks[[0, 5]].nonzero().tolist() == [[0, 0], [0, 1], [0, 4], [1, 1], [1, 2]]
    constraint.look([1, 0])
    assert constraint.plan == [None, 2]
    assert constraint.length == 0


def test_choices_end_after_each_of_them_also_where_one_begins_another():
    constraint = build(choices=["a", "ab", "abc", "a"])
    found = set()

    def explore(one, tokens):
        if one.ended:
            found.add("".join(PIECES[token] for token in tokens[:-1]))
        for token in range(12):
            if one.accepts(token):
                ahead = one.copy()
                ahead.advance(token)
                explore(ahead, [*tokens, token])

    explore(constraint, [])
    assert found == {"a", "ab", "abc"}


@pytest.mark.parametrize(
    "text", ['say "yes"', "a\\b", "a\nb", "é 😀", "50 %, or so", "/x/ | y", " a ", "[a]{2}", "a\x7f\tb", "<|im_start|>"]
)
def test_choices_are_taken_letter_by_letter(text, processor):
    tokenizer = processor.tokenizer
    constraint = build(tokenizer, tokenizer.eos_token_id, 60, choices=[text])
    assert tokenizer.decode(constraint.take()) == text + tokenizer.eos_token


@pytest.mark.parametrize("regex", [r".*", r"(.|\n)*", r"[^x]*"])
def test_added_tokens_and_what_no_answer_may_hold_never_match(regex):
    assert allowed(build(regex=regex)) == {*range(6), EOS}


@pytest.mark.parametrize("added", ["abc", "bca", "ab"])  # the last is in the vocabulary, and stays ordinary
def test_a_text_that_an_added_token_stands_for_is_spelled_by_other_tokens(added):
    constraint = build(byte_level(added=[added]), regex="abca?")
    written = constraint.take()
    while not constraint.ended:
        token = min(allowed(constraint))
        constraint.advance(token)
        written += [token, *constraint.take()]
    assert "".join(PIECES[token] for token in written[:-1]) in ("abc", "abca")


def test_a_tokenizer_with_a_space_mark_is_read():
    pieces = ["<eos>", "<unk>", "▁", "a", "b", "▁a", "<mask>", "<image>", "ab"]
    backend = Tokenizer(
        models.BPE({piece: i for i, piece in enumerate(pieces)}, [("▁", "a"), ("a", "b")], unk_token="<unk>")
    )
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens(["<eos>", "<unk>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>", unk_token="<unk>")
    constraint = build(tokenizer, eos_token_id=0, regex="ab a|b")
    assert allowed(constraint, 9) == {3, 4, 8}
    constraint.advance(8)
    assert constraint.forced == [5, 0]


@pytest.mark.parametrize(
    ("constraint", "said"),
    [
        ({"regex": "("}, "unclosed group"),
        ({"regex": "a\\"}, "a backslash that escapes nothing"),
        ({"regex": "a(?=b)"}, "look-around"),
        ({"regex": r"(a)\1"}, "backreferences"),
        ({"grammar": "nonsense"}, "Expected token"),
        ({"grammar": "start: start"}, "no text fits it"),
        ({"json_schema": "{"}, "json_schema cannot be used"),
        ({"json_schema": "true"}, "Expecting object schema"),
        ({"json_schema": {"type": "foo"}}, "Invalid type: foo"),
        ({"json_schema": {"type": "integer", "minimum": 5, "maximum": 4}}, "Unsatisfiable"),
        ({"json_schema": {"not": {}}}, "Unimplemented keys"),
        ({"json_schema": {"enum": []}}, "Unsatisfiable"),
        ({"json_schema": {"$ref": "https://example.com/schema"}}, "not present in a registry"),
        ({"json_schema": {"$ref": "file:///etc/passwd"}}, "not present in a registry"),
        ({"json_schema": {"$ref": "#"}}, "no text fits it"),
        ({"json_schema": {"const": float("nan")}}, "cannot be written as JSON"),
        ({"json_schema": {"const": "\ud800"}}, "cannot be written as JSON"),
        ({"json_schema": {"const": {1, 2}}}, "cannot be written as JSON"),
        ({"json_schema": {"const": "a" * 300_000}}, "bytes; give at most"),
        ({"json_schema": '{"a":' * 300 + "{}" + "}" * 300}, "recursion limit"),
        ({"regex": "a", "choices": ["b"]}, "regex and choices constrain the same answer"),
    ],
)
def test_a_constraint_that_cannot_be_used_is_refused_with_the_reason(constraint, said):
    with pytest.raises(UserError, match=re.escape(said)):
        build(**constraint)


def nested(depth):
    schema = {"type": "null"}
    for _ in range(depth):
        schema = {"properties": {"a": schema}}
    return schema


def test_a_schema_that_is_nested_too_deeply_is_refused():
    for depth in (100, 5_000):
        with pytest.raises(UserError, match="recursion"):
            build(json_schema=nested(depth))


def test_a_tokenizer_that_cannot_be_read_is_refused_with_the_reason(tmp_path):
    with pytest.raises(UserError, match="needs a tokenizer"):
        compile_constraint(DiffusionVLGenerationConfig(regex="a", eos_token_id=1), None, [])
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"BertTokenizer.*decoder"):
        build(BertTokenizer(str(tmp_path / "vocab.txt")), eos_token_id=3, regex="a")

    class Slow:
        added_tokens_decoder = {}

        def __len__(self):
            return 10

    with pytest.raises(UserError, match=r"Slow.*not a fast one"):
        build(Slow(), regex="a")


@pytest.mark.parametrize(
    ("ends", "said"), [([], "eos_token_id"), ([99], "none of these"), ([0], "stands for the text 'a'")]
)
def test_an_end_of_sequence_must_be_a_special_token_of_the_tokenizer(ends, said):
    with pytest.raises(UserError, match=said):
        build(eos_token_id=ends, regex="a")


def test_every_id_that_ends_an_answer_may_end_it():
    tokenizer = byte_level()
    assert allowed(build(tokenizer, eos_token_id=[EOS, IMAGE + 92], regex="a*")) == {0, 5, EOS}
    tokenizer.add_special_tokens({"additional_special_tokens": ["<end>"]})
    end = tokenizer.convert_tokens_to_ids("<end>")
    assert allowed(build(tokenizer, eos_token_id=[EOS, end], regex="a*")) == {0, 5, EOS, end}


def test_a_grammar_that_grows_too_complex_says_so():
    constraint = build(regex="((a{0,100}){0,100}){0,100}", max_new_tokens=100)

    def write():
        for _ in range(100):
            constraint.look([])
            constraint.check(bool(fill_bitmasks([constraint]).any(-1).all()))
            constraint.advance(0)

    with pytest.raises(UserError, match=r"cannot go on: .*too many expressions"):
        write()


def test_a_text_of_special_tokens_cannot_be_spelled():
    constraint = build(grammar='start: "a" <[7]> "b"')
    assert constraint.take() == [0]
    constraint.look([])
    with pytest.raises(UserError, match="no tokens of an answer spell"):
        constraint.check(bool(fill_bitmasks([constraint]).any(-1).all()))


def test_a_grammar_is_compiled_once(monkeypatch):
    tokenizer, compiled = byte_level(), []
    own = grammar.LLMatcher

    class Counted:
        grammar_from_regex = own.grammar_from_regex

        def __new__(cls, reader, text, **options):
            compiled.append(text)
            return own(reader, text, **options)

    monkeypatch.setattr(grammar, "LLMatcher", Counted)
    monkeypatch.setattr(grammar, "MAX_GRAMMARS", 2)
    for regex, count in (("a", 1), ("a", 1), ("b", 2), ("c", 3), ("b", 3), ("a", 4)):  # the third drives out the first
        first, second = (build(tokenizer, regex=regex) for _ in range(2))
        assert len(compiled) == count
        first.take()
        assert (first.ended, second.ended) == (True, False)


def test_the_code_of_a_published_checkpoint_asks_for_no_llguidance():
    """transformers refuses code that imports what is not there, unless the import is guarded."""
    for path in Path(grammar.__file__).parent.glob("*.py"):
        assert "llguidance" not in get_imports(path), path


def test_without_llguidance_the_remedy_is_named(monkeypatch):
    monkeypatch.setattr(grammar, "INSTALLED", False)
    with pytest.raises(UserError, match=r"diffusionvl\[constrain\]"):
        build(regex="a")
    assert compile_constraint(DiffusionVLGenerationConfig(), None, []) is None
