"""The portrait maker: every option draws what it names, wrong ones are explained in one sentence."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import client_demo.gallery
from model.training import portrait as P
from model.training.render import palette
from model.training.render.heroes import HEROES

SIZE = 96


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def picture(seed=7, **options):
    return P.portrait(seed, size=SIZE, **options).astype(float) / 255


def change(a, b):
    """How much each pixel differs, [SIZE, SIZE]."""
    return np.abs(a - b).sum(2)


def test_a_portrait_is_a_png_of_its_size(tmp_path):
    out = P.draw_portrait(tmp_path / "new" / "p.png", 7, size=80, hair="bun")
    with Image.open(out) as image:
        assert image.format == "PNG" and image.mode == "RGB" and image.size == (80, 80)
        assert np.array_equal(np.asarray(image), P.portrait(7, size=80, hair="bun"))


def test_the_seed_decides(tmp_path):
    assert np.array_equal(P.portrait(3, size=64), P.portrait(3, size=64))
    assert change(picture(3), picture(4)).mean() > 0.05


def test_none_leaves_an_option_to_the_seed():
    assert np.array_equal(picture(3), picture(3, hair=None, skin=None, glasses=None))


@pytest.mark.parametrize("option", list(P.OPTIONS))
def test_every_name_of_every_option_draws_its_own_picture(option):
    extra = {"hair": "crop"} if option == "hair_color" else {}
    pictures = [picture(**{option: name}, **extra) for name in P.names(option)]
    for k, a in enumerate(pictures):
        for b in pictures[k + 1 :]:
            assert change(a, b).max() > 0.05


@pytest.mark.parametrize("name", palette.SKIN)
def test_skin_colors_the_face(name):
    forehead = picture(skin=name, hair="bald", beard="none")[28:34, 44:52].mean((0, 1))
    assert np.abs(forehead - np.array(palette.SKIN[name])).max() < 0.14


@pytest.mark.parametrize("name", palette.HAIR_COLOR)
def test_hair_color_colors_the_hair(name):
    crown = picture(hair="crop", hair_color=name)[14:22, 40:56].mean((0, 1))
    assert np.abs(crown - np.array(palette.HAIR_COLOR[name])).max() < 0.16


@pytest.mark.parametrize("name", palette.CLOTH)
def test_clothes_color_colors_the_chest(name):
    chest = picture(clothes="crew", clothes_color=name)[88:94, 30:66].mean((0, 1))
    assert np.abs(chest - np.array(palette.CLOTH[name])).max() < 0.14


@pytest.mark.parametrize("name", palette.BACKGROUND)
def test_background_colors_the_wall(name):
    corner = picture(background=name)[2:6, 2:6].mean((0, 1))
    assert np.abs(corner - np.array(palette.BACKGROUND[name])).max() < 0.2


def test_long_hair_reaches_the_shoulders_and_bald_has_none():
    long, bald = picture(hair="long", hair_color="black"), picture(hair="bald", hair_color="black")
    dark = lambda p: (p[50:75].max(2) < 0.25).sum()  # noqa: E731
    assert dark(long) > dark(bald) + 100
    assert (picture(hair="bald", hair_color="black")[14:40].max(2) < 0.2).sum() < 40


def test_a_beard_is_in_the_lower_face():
    difference = change(picture(beard="none"), picture(beard="full"))
    with_man = change(picture(beard="stubble"), picture(beard="full"))
    assert difference[55:75].sum() > 0.3 * difference.sum()
    assert with_man[:40].sum() < 0.02 * with_man.sum() and with_man[55:75].sum() > 0.6 * with_man.sum()


def test_glasses_are_around_the_eyes():
    difference = change(picture(glasses=False, hair="buzz"), picture(glasses=True, hair="buzz"))
    assert difference[36:58].sum() > 0.9 * difference.sum() > 5


@pytest.mark.parametrize(
    "options, words",
    [
        ({"hair": "mohawk"}, ["hair is 'mohawk'", *palette.STYLE]),
        ({"skin": "green"}, ["skin is 'green'", *palette.SKIN]),
        ({"hair_color": "grue"}, ["hair-color is 'grue'", *palette.HAIR_COLOR]),
        ({"beard": "huge"}, ["beard is 'huge'", *palette.BEARD]),
        ({"clothes": "toga"}, ["clothes is 'toga'", *palette.COLLAR]),
        ({"clothes_color": "x"}, ["clothes-color is 'x'", *palette.CLOTH]),
        ({"background": "beach"}, ["background is 'beach'", *palette.BACKGROUND]),
        ({"hat": "bowler"}, ["hat is no option", "hair", "glasses"]),
        ({"size": 4096}, ["size is 4096", "64", "1024"]),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_wrong_option_is_explained(options, words, tmp_path):
    with pytest.raises(ValueError) as caught:
        P.draw_portrait(tmp_path / "p.png", 1, **options)
    text = str(caught.value)
    assert all(word in text for word in words) and "\n" not in text
    assert not list(tmp_path.iterdir())


def test_only_png_files_are_written(tmp_path):
    with pytest.raises(ValueError, match=r"p\.png"):
        P.draw_portrait(tmp_path / "p.jpg", 1)


def test_the_gallery_that_ships_is_the_one_that_is_drawn():
    folder = Path(client_demo.gallery.__file__).parent
    index = json.loads((folder / "index.json").read_text())
    assert [entry["id"] for entry in index] == [hero.id for hero in HEROES]
    assert {entry["file"] for entry in index} == {path.name for path in folder.glob("*.png")}
    for entry in index:
        with Image.open(folder / entry["file"]) as image:
            assert image.size == (512, 512) and image.mode == "RGB"


def test_drawing_the_gallery_again_gives_the_same_pictures(tmp_path):
    folder = Path(client_demo.gallery.__file__).parent
    small = P.draw_gallery(tmp_path, size=64)
    assert [path.stem for path in small] == [hero.id for hero in HEROES]
    assert (tmp_path / "index.json").read_text() == (folder / "index.json").read_text()
    for path in small:
        with Image.open(path) as drawn, Image.open(folder / path.name) as shipped:
            shrunk = np.asarray(shipped.resize((64, 64), Image.Resampling.BOX), float)
            assert np.abs(np.asarray(drawn, float) - shrunk).mean() < 2.5


def test_the_command_draws_what_its_options_say(tmp_path, capsys):
    out = tmp_path / "p.png"
    words = "--seed 5 --hair waves --hair-color auburn --skin honey --beard none --clothes blazer --clothes-color navy"
    status = P.main([*words.split(), "--background", "mint", "--glasses", "--size", "64", str(out)])
    assert status == 0 and capsys.readouterr().out == f"{out}\n"
    same = dict(hair="waves", hair_color="auburn", skin="honey", beard="none", clothes="blazer", clothes_color="navy")
    expected = P.portrait(5, size=64, background="mint", glasses=True, **same)
    with Image.open(out) as image:
        assert np.array_equal(np.asarray(image), expected)
    assert P.main(["--seed", "5", "--no-glasses", "--size", "64", str(out)]) == 0
    with Image.open(out) as image:
        assert np.array_equal(np.asarray(image), P.portrait(5, size=64, glasses=False))


def test_the_command_explains_a_wrong_name_in_one_line(tmp_path, capsys):
    assert P.main(["--hair", "mohawk", str(tmp_path / "p.png")]) == 2
    text = capsys.readouterr().err
    assert "mohawk" in text and "waves" in text and text.count("\n") == 1


def test_the_command_needs_one_place_to_write(tmp_path, capsys):
    for words in ([], ["--gallery", str(tmp_path), str(tmp_path / "p.png")]):
        with pytest.raises(SystemExit) as caught:
            P.main(words)
        assert caught.value.code == 2 and "--gallery" in capsys.readouterr().err


def test_the_command_draws_the_gallery(tmp_path):
    assert P.main(["--gallery", str(tmp_path), "--size", "64"]) == 0
    assert len(list(tmp_path.glob("*.png"))) == len(HEROES)
