"""Output sizes and placement of pictures against the published rules."""

from __future__ import annotations

from model.picture_size import short_side_fit, size_within_area


def test_sizes_and_placement(golden) -> None:
    fixture = golden("j_size")
    assert fixture.info["rows"]
    for row in fixture.info["rows"]:
        picture = row["image_h"], row["image_w"]
        out = size_within_area(*picture, row["target_area"], fixture.info["divisor"])
        assert out == (row["out_h"], row["out_w"]), row
        fit = short_side_fit(*picture, *out)
        assert (fit.height, fit.width) == (row["resized_h"], row["resized_w"]), row
        assert (list(fit.pad), fit.top, fit.left) == (row["pad_ltrb"], row["crop_top"], row["crop_left"]), row
