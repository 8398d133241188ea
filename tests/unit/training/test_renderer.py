"""The portrait renderer: repeatable, and every motion value does what its name says."""

import pytest
import torch

from model.training import render as R
from model.training.render import head, palette
from model.training.render.frame import picture_view, spread
from model.training.render.heroes import HEROES, indices
from model.training.render.identity import CHOICES, sample_identity

SIZE = 128


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def person(**choose):
    """A shaven light-skinned person without glasses, whose mouth and eyes are easy to read from the pixels."""
    look = (
        dict(
            style="bun",
            skin="sand",
            cloth="navy",
            collar="crew",
            background="pine",
            beard="none",
            glasses=0,
            feminine=1,
            age=0.1,
        )
        | choose
    )
    return sample_identity(1, torch.Generator().manual_seed(4), choose=indices(look))


def draw(identity, size=SIZE, **motion):
    """One picture [3, size, size] and what is known of it, at rest but for `motion`."""
    table = R.neutral(1)
    for name, value in motion.items():
        assert name in table
        table[name][:] = value
    img, aux = R.render(identity, table, size)
    return img[0], {name: value[0] for name, value in aux.items()}


def mouth_box(img, aux):
    """The picture around the mouth, [3, h, w]."""
    x, y = ((aux["mouth_xy"] + 1) / 2 * img.shape[-1]).round().int().tolist()
    k = img.shape[-1] // 6
    return img[:, y - k // 2 - 2 : y + k // 2 + 4, x - k : x + k]


def cavity(img, aux):
    """Mask of the dark red inside of the mouth."""
    r, g, b = mouth_box(img, aux)
    return (r < 0.40) & (r > 0.12) & (g < 0.14) & (b < 0.16)


def teeth(img, aux):
    """Mask of ivory between the lips; light skin and clothes are redder."""
    r, g, b = mouth_box(img, aux)
    return (b > 0.60) & (r - b < 0.12)


def center_of_change(a, b):
    """Where two pictures differ, as x, y in -1..1."""
    weight = (a - b).abs().sum(0)
    at = (torch.arange(a.shape[-1]) + 0.5) / a.shape[-1] * 2 - 1
    return torch.stack([(weight.sum(0) * at).sum(), (weight.sum(1) * at).sum()]) / weight.sum()


def test_the_same_seed_gives_the_same_bits():
    tables = [sample_identity(3, torch.Generator().manual_seed(8)) for _ in range(2)]
    pictures = [R.render(table, R.neutral(3), 64)[0] for table in tables]
    assert all(torch.equal(tables[0][k], tables[1][k]) for k in tables[0])
    assert torch.equal(*pictures)
    other = R.render(sample_identity(3, torch.Generator().manual_seed(9)), R.neutral(3), 64)[0]
    assert (other - pictures[0]).abs().mean() > 0.02


def test_a_row_does_not_depend_on_its_batch():
    table = sample_identity(4, torch.Generator().manual_seed(8))
    together = R.render(table, R.neutral(4), 64)[0]
    alone = R.render(R.take(table, 2), R.neutral(1), 64)[0]
    assert (together[2] - alone[0]).abs().max() < 1e-5


def test_a_choice_changes_nothing_else():
    free = sample_identity(5, torch.Generator().manual_seed(2))
    fixed = sample_identity(5, torch.Generator().manual_seed(2), choose={"cloth": 3, "glasses": 1})
    changed = {k for k in free if not torch.equal(free[k], fixed[k])}
    assert changed == {"cloth", "glasses"}
    assert (fixed["glasses"] == 1).all()


def test_every_choice_is_taken():
    assert set(CHOICES) >= set(palette.NAMED)
    base = sample_identity(6, torch.Generator().manual_seed(2))
    for name in CHOICES:
        values = (0, 1) if name not in palette.NAMED else (0, len(palette.NAMED[name]) - 1)
        tables = [sample_identity(6, torch.Generator().manual_seed(2), choose={name: v}) for v in values]
        assert any(not torch.equal(tables[0][k], tables[1][k]) for k in base), name


def test_pictures_stay_in_range_under_extreme_motion():
    gen = torch.Generator().manual_seed(1)
    table, motion = sample_identity(12, gen), R.neutral(12)
    for name in motion:
        motion[name] = (torch.rand(12, generator=gen) * 2 - 1) * 1.3
    img, aux = R.render(table, motion, 64)
    assert torch.isfinite(img).all() and img.min() >= 0 and img.max() <= 1
    assert all(torch.isfinite(value).all() for value in aux.values())


def test_the_head_stays_in_the_picture_in_every_pose():
    n = 64
    table, motion = sample_identity(n, torch.Generator().manual_seed(3)), R.neutral(n)
    sign = lambda bit: (torch.arange(n) // 2**bit % 2 * 2 - 1).float()  # noqa: E731
    for bit, (name, limit) in enumerate({"yaw": 0.35, "pitch": 0.2, "roll": 0.15, "tx": 0.06, "ty": 0.05}.items()):
        motion[name] = sign(bit) * limit
    motion["jaw"][:] = 1.2
    i, m = spread(table), spread(motion)
    outline = head.head_shape(picture_view(64, i, m), i, m)
    border = torch.cat([outline[:, 0], outline[:, -1], outline[:, :, 0], outline[:, :, -1]], 1)
    assert (outline < 0).flatten(1).any(1).all()
    assert border.min() > 0.02


def test_opening_grows_with_open():
    who = person()
    counts = [cavity(*draw(who, open=o, jaw=o)).sum().item() for o in (0, 0.25, 0.5, 0.75, 1.0)]
    assert counts[0] == 0
    assert all(b > 1.15 * a for a, b in zip(counts[1:], counts[2:], strict=False)) and counts[1] > 10
    heights = [draw(who, open=o)[1]["aperture"].item() for o in (0, 0.5, 1.0)]
    assert heights == sorted(heights) and heights[0] < 0.002 and heights[2] > 0.1


def test_aperture_is_the_height_that_is_drawn():
    who = person()
    img, aux = draw(who, 256, open=1.0)
    rows = cavity(img, aux).any(1).sum().item()
    expected = aux["aperture"].item() * who["scale"].item() * 128
    assert abs(rows - expected) < 4


def test_pressed_lips_are_closed_and_thin():
    who = person()
    rest, pressed = draw(who), draw(who, press=1.0)
    assert cavity(*pressed).sum() == 0 and teeth(*pressed).sum() == 0
    red = lambda shot: (mouth_box(*shot)[0] - mouth_box(*shot)[1] > 0.25).sum().item()  # noqa: E731
    assert red(pressed) < 0.75 * red(rest)


def test_rounding_narrows_and_spreading_widens():
    who = person()
    wide = lambda **m: cavity(*draw(who, open=0.5, **m)).any(0).sum().item()  # noqa: E731
    assert wide(round=1.0) < 0.75 * wide()
    spread_cols = (cavity(*draw(who, open=0.5, width=1.0)) | teeth(*draw(who, open=0.5, width=1.0))).any(0).sum().item()
    assert spread_cols > 1.1 * wide()


def test_teeth_tuck_and_tongue_show():
    who = person()
    assert teeth(*draw(who, open=0.5, teeth=1.0)).sum() > teeth(*draw(who, open=0.5)).sum() + 20
    assert teeth(*draw(who, open=0.05, ftuck=1.0)).sum() > teeth(*draw(who, open=0.05)).sum() + 15
    pink = lambda t: (mouth_box(*draw(who, open=0.9, tongue=t)) - mouth_box(*draw(who, open=0.9))).abs().sum()  # noqa: E731
    assert pink(1.0) > 5


def iris_pixels(identity, **motion):
    img, aux = draw(identity, 256, **motion)
    near = (img - identity["iris"][0][:, None, None]).abs().amax(0) < 0.10
    at = (torch.arange(256) + 0.5) / 128 - 1
    found = []
    for x, y in aux["eyes"].tolist():
        found.append(near & ((at - x).abs() < 0.10)[None, :] & ((at - y).abs() < 0.08)[:, None])
    return found[0] | found[1], at


def test_a_blink_hides_the_iris():
    who = person(skin="porcelain") | {"iris": torch.tensor([[0.2, 0.5, 0.75]])}
    counts = [iris_pixels(who, blink=b)[0].sum().item() for b in (0.0, 0.5, 1.0)]
    assert counts[0] > 40 and counts[1] < 0.85 * counts[0] and counts[2] == 0


@pytest.mark.parametrize("name, axis", [("gaze_x", 0), ("gaze_y", 1)])
def test_gaze_moves_the_iris(name, axis):
    who = person(skin="porcelain") | {"iris": torch.tensor([[0.2, 0.5, 0.75]])}
    places = []
    for value in (-0.5, 0.0, 0.5):
        mask, at = iris_pixels(who, **{name: value})
        places.append((mask.sum(axis).float() * at).sum() / mask.sum())
    assert places[0] < places[1] < places[2]


@pytest.mark.parametrize(
    "pose",
    [{}, {"yaw": 0.3}, {"yaw": -0.3}, {"pitch": 0.2}, {"pitch": -0.2}, {"roll": 0.15}, {"tx": 0.05, "ty": -0.04}],
    ids=str,
)
def test_reported_places_are_where_things_are(pose):
    who = person()
    closed, opened = draw(who, **pose), draw(who, open=1.0, **pose)
    assert (center_of_change(closed[0], opened[0]) - opened[1]["mouth_xy"]).abs().max() < 0.05
    shut = draw(who, blink=1.0, **pose)
    assert (center_of_change(closed[0], shut[0]) - closed[1]["eyes"].mean(0)).abs().max() < 0.05


@pytest.mark.parametrize("name", [n for n in R.MOTION if n not in ("open", "blink", "tongue")])
def test_every_motion_value_moves_something(name):
    who, opened = person(), {"open": 0.6} if name in ("teeth", "ftuck", "width", "round") else {}
    still, moved = draw(who, **opened)[0], draw(who, **opened, **{name: 0.15})[0]
    assert (still - moved).abs().max() > 0.02


def test_smile_lifts_the_corners():
    who = person()
    happy, sad = draw(who, 256, smile=0.8), draw(who, 256, smile=-0.6)
    box = mouth_box(happy[0] - sad[0], happy[1])
    assert box.abs().max() > 0.3


def test_size_changes_the_grid_and_not_the_picture():
    table = sample_identity(3, torch.Generator().manual_seed(5))
    large = torch.nn.functional.avg_pool2d(R.render(table, R.neutral(3), 256)[0], 2)
    small = R.render(table, R.neutral(3), 128)[0]
    assert (large - small).abs().mean() < 0.006


def test_the_mouth_is_wide_enough_to_read():
    table = sample_identity(20, torch.Generator().manual_seed(5))
    width_px = 2 * (table["mouth_w"] * 1.27 * 1.04) * table["scale"] * 128
    assert width_px.mean() > 58


def test_render_frames_pads_its_last_batch():
    table = sample_identity(5, torch.Generator().manual_seed(6))
    frames, mouths = R.render_frames(table, R.neutral(5), 64, batch=2)
    img, aux = R.render(table, R.neutral(5), 64)
    assert frames.shape == (5, 3, 64, 64) and frames.dtype == torch.uint8 and mouths.shape == (5, 2)
    assert (frames.float() / 255 - img).abs().max() < 0.5 / 255 + 1e-5
    assert torch.allclose(mouths, (aux["mouth_xy"] + 1) * 32, atol=1e-4)


def test_compiled_layers_draw_the_same():
    table = sample_identity(2, torch.Generator().manual_seed(6))
    motion = R.neutral(2)
    motion["open"][:] = 0.6
    img, _ = R.compiled(backend="eager")(table, motion, 48)
    assert (img - R.render(table, motion, 48)[0]).abs().max() < 1e-5


def test_take_and_concat():
    table = sample_identity(4, torch.Generator().manual_seed(6))
    again = R.concat([R.take(table, slice(0, 3)), R.take(table, -1)])
    assert all(torch.equal(again[k], table[k]) for k in table)
    picked = R.take(table, torch.tensor([3, 3, 0]))
    assert torch.equal(picked["skin"][1], table["skin"][3])


def test_heroes_are_many_and_repeatable():
    first, second = R.heroes(), R.heroes()
    assert 10 <= len(HEROES) <= 12 and first["skin"].shape == (len(HEROES), 3)
    assert all(torch.equal(first[k], second[k]) for k in first)
    assert len({h.id for h in HEROES}) == len({h.name for h in HEROES}) == len(HEROES)
    assert len(set(first["style"].tolist())) >= 8 and 0.2 < first["glasses"].mean() < 0.6
    sampled = sample_identity(1, torch.Generator().manual_seed(0))
    assert set(sampled) == set(first)


def test_combinations_are_curated():
    table = sample_identity(3000, torch.Generator().manual_seed(0))
    long = table["hair_back_len"] > 0
    assert (table["beard"][long] == 0).all()
    dark = table["skin"].mean(1) < 0.42
    assert dark.float().mean() > 0.15
    assert (table["hair"][dark].mean(1) > 0.5).float().mean() < 0.15
