"""Segments: one beginning and exactly one end each, and how far each was heard."""

from streaming.events import PlaybackReport
from streaming.segments import SegmentBook


def told(turns) -> list[tuple[str, str | None, int, bool]]:
    return [
        (t.kind.removeprefix("playback_"), t.report.segment, t.report.position_ms, t.report.interrupted) for t in turns
    ]


def test_a_segment_is_heard_from_its_first_to_its_last_sample():
    book = SegmentBook()
    book.begin("a")
    book.extend("a", 16_000, 20_000)
    book.extend("a", 20_000, 32_000)
    book.complete("a")
    assert book.next_sample() == 16_000 and told(book.advance(15_999)) == []
    assert told(book.advance(16_000)) == [("started", "a", 0, False)] and book.is_playing
    assert book.next_sample() == 32_000 and told(book.advance(31_999)) == []
    assert told(book.advance(40_000)) == [("finished", "a", 1000, False)]
    assert not book.is_playing and book.next_sample() is None and "a" not in book


def test_holes_are_not_heard():
    book = SegmentBook()
    book.begin("a")
    book.extend("a", 0, 1600)
    book.extend("a", 16_000, 17_600)
    list(book.advance(0))
    assert book.interrupt(16_800)[0] == PlaybackReport(segment="a", position_ms=150, interrupted=True)


def test_a_growing_segment_has_no_end_until_told():
    book = SegmentBook()
    book.begin("v")
    book.extend("v", 100, None)
    assert told(book.advance(1_000_000)) == [("started", "v", 0, False)]
    assert book.next_sample() is None
    book.complete("v", 16_100)
    assert told(book.advance(1_000_000)) == [("finished", "v", 1000, False)]


def test_an_interrupt_ends_everything_once():
    book = SegmentBook()
    for name, start in (("a", 0), ("b", 8000), ("c", None)):
        book.begin(name)
        if start is not None:
            book.extend(name, start, start + 8000)
    list(book.advance(4000))
    answer, turns = book.interrupt(4000)
    assert answer == PlaybackReport(segment="a", position_ms=250, interrupted=True)
    assert told(turns) == [("finished", "a", 250, True), ("finished", "b", 0, True), ("finished", "c", 0, True)]
    assert book.interrupt(5000) == (PlaybackReport(segment=None, position_ms=0, interrupted=False), [])
    assert told(book.advance(99_999)) == []


def test_an_empty_segment_ends_at_once():
    book = SegmentBook()
    book.begin("a")
    book.complete("a")
    assert book.next_sample() == 0
    assert told(book.advance(0)) == [("finished", "a", 0, False)]


def test_segments_follow_each_other_in_one_step():
    book = SegmentBook()
    for name, start in (("a", 0), ("b", 160)):
        book.begin(name)
        book.extend(name, start, start + 160)
        book.complete(name)
    kinds = [(kind, name) for kind, name, _, _ in told(book.advance(1000))]
    assert kinds == [("started", "a"), ("finished", "a"), ("started", "b"), ("finished", "b")]
