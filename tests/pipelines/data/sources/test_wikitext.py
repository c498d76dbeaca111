"""Wikitext becomes plain text."""

from pipelines.data.sources.wikitext import plain_text


def test_wikitext_that_is_broken_gives_words_all_the_same() -> None:
    assert "曹操" in plain_text("{{未閉 [[曹操 '''x\n{| 表")
    assert plain_text("") == ""
