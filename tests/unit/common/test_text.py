"""Small things done to text: names cannot steer a terminal, blank is what cannot be seen, pieces are the whole."""

import io
import pickle
import sys

import pytest

from transpooler.common import UserError, cut_at_white_space, is_blank, list_some, progress, say, show_controls


@pytest.mark.parametrize(
    ("text", "blank"), [("", True), (" \n\0\u200b\ufeff\u00a0", True), ("\u200b.", False), ("漢", False)]
)
def test_what_cannot_be_seen_is_blank(text: str, blank: bool) -> None:
    assert is_blank(text) is blank


@pytest.mark.parametrize(
    ("count", "noun", "text"),
    [
        (0, "", ""),
        (3, "file", "0, 1, 2"),
        (4, "", "0, 1, 2 and 1 more"),
        (4, "file", "0, 1, 2 and 1 more file"),
        (2003, "file", "0, 1, 2 and 2,000 more files"),
    ],
)
def test_lists_show_their_beginning_and_count_the_rest(count: int, noun: str, text: str) -> None:
    assert list_some(range(count), noun=noun) == text


def test_control_characters_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        show_controls("a\x1b[2J\x9b1m\r\u202eb\udcff\tc\nd é") == "a\\u001b[2J\\u009b1m\\u000d\\u202eb\\udcff\tc\nd é"
    )
    say("dropped: a\x1b[2J.jsonl\nb")
    assert capsys.readouterr().err.endswith(" dropped: a\\u001b[2J.jsonl\\nb\n")


def test_a_problem_is_one_line_whatever_it_names() -> None:
    problem = UserError("a\nb: missing", "c\rd: broken")
    assert str(problem).splitlines() == ["a\\nb: missing", "c\\u000dd: broken"]
    assert str(pickle.loads(pickle.dumps(problem))) == str(problem)


def test_the_label_of_a_bar_is_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rich would read brackets as markup."""
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", terminal)
    with progress("train a[/b]\n\x1b[2J", 1) as bar:
        bar.advance(note="[/c]")
    assert r"train a[/b]\n\u001b[2J" in terminal.getvalue()
    assert "[/c]" in terminal.getvalue()


@pytest.mark.parametrize("text", ["", "  a  bc def\n\nghi " * 9, "x" * 50, " " * 50])
def test_pieces_are_cut_before_white_space(text: str) -> None:
    pieces = list(cut_at_white_space(text, 7))
    assert "".join(pieces) == text
    assert all(piece[0].isspace() for piece in pieces[1:])
