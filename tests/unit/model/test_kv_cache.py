"""The ring: growth, eviction, gaps, the condition in front, and the differentiable path."""

from __future__ import annotations

import pytest
import torch

from model import rope
from model.host_rings import LayerBuffers
from model.kv_cache import ConditionCache, RollingCache

LAYERS, BATCH, TOKENS, HEADS, WIDTH = 2, 1, 3, 2, 12
REFERENCE, MOTION = 2, 4


def condition(motion: bool = True, seed: int = 0) -> ConditionCache:
    g = torch.Generator().manual_seed(seed)
    count = REFERENCE + (MOTION if motion else 0)
    k, v = (torch.randn(LAYERS, BATCH, count, HEADS, WIDTH, generator=g) for _ in range(2))
    behind = rope.rotation_of(rope.grid((-4, 0, 0), (0, 1, 1), (4, 1, 1)), WIDTH) if motion else None
    return ConditionCache(k=k, v=v, motion=behind, num_reference=REFERENCE)


def write(cache: RollingCache, block: int, requires_grad: bool = False):
    cache.begin(block)
    out = []
    for layer in range(LAYERS):
        k = torch.full((BATCH, TOKENS, HEADS, WIDTH), 100.0 * layer + block, requires_grad=requires_grad)
        out.append(cache.update(layer, k, -k))
    cache.advance()
    return out


def seen(keys: torch.Tensor, condition_tokens: int) -> list[int]:
    """Blocks that attention sees, in slot order."""
    return keys[0, condition_tokens::TOKENS, 0, 0].int().tolist()


@pytest.mark.parametrize(
    ("evict", "blocks", "last"),
    [
        ("oldest", [0, 1], [0, 1]),
        ("oldest", [0, 1, 2, 3, 4], [3, 4, 2]),
        ("slot", [0, 1, 2, 3, 4], [3, 4, 2]),
        ("oldest", [0, 1, 2, 3, 5], [3, 5, 2]),
        ("slot", [0, 1, 2, 3, 5], [3, 1, 5]),
        ("slot", [7, 8], [7, 8]),
        ("oldest", [1_000_000, 1_000_001, 1_000_002, 1_000_003], [1_000_003, 1_000_001, 1_000_002]),
        ("oldest", [4, 9], [4, 9]),
    ],
)
def test_ring_order(evict: str, blocks: list[int], last: list[int]) -> None:
    cond = condition()
    cache = RollingCache.allocate(cond, 3, TOKENS, evict)
    for b in blocks:
        result = write(cache, b)
        assert cache.blocks[cache.slot] == b
    count = cond.k.shape[2]
    assert seen(result[0][0], count) == last
    assert seen(result[1][0] - 100, count) == last
    assert torch.equal(result[0][0][:, count:], -result[0][1][:, count:])
    assert cache.blocks == last


def test_passes_of_one_block_overwrite_each_other() -> None:
    cache = RollingCache.allocate(condition(False), 2, TOKENS)
    cache.begin(0)
    for value in (1.0, 2.0):
        k, _ = cache.update(0, torch.full((BATCH, TOKENS, HEADS, WIDTH), value), torch.zeros(1))
        assert k.shape[1] == REFERENCE + TOKENS
    assert seen(k, REFERENCE) == [2]


def test_condition_is_in_front_with_motion_rotated_and_reference_rolling() -> None:
    cond = condition()
    cache = RollingCache.allocate(cond, 2, TOKENS)
    at = rope.rotation_of(rope.reference_positions(41, 1, REFERENCE), WIDTH)
    cache.set_reference(cond.rotated_reference(at))
    result = write(cache, 0)
    for layer in range(LAYERS):
        keys, values = result[layer]
        wanted = torch.cat(
            [rope.rotate(cond.k[layer][:, :REFERENCE], at), rope.rotate(cond.k[layer][:, REFERENCE:], cond.motion)], 1
        )
        torch.testing.assert_close(keys[:, : REFERENCE + MOTION], wanted)
        torch.testing.assert_close(values[:, : REFERENCE + MOTION], cond.v[layer])


def test_another_condition_leaves_the_ring() -> None:
    cache = RollingCache.allocate(condition(), 2, TOKENS)
    write(cache, 0)
    other = condition(seed=1)
    cache.set_condition(other)
    keys, values = write(cache, 1)[0]
    assert seen(keys, REFERENCE + MOTION) == [0, 1]
    torch.testing.assert_close(values[:, : REFERENCE + MOTION], other.v[0])


def test_gradients_flow_through_the_current_block_only() -> None:
    plain, graph = (RollingCache.allocate(condition(False), 3, TOKENS) for _ in range(2))
    for b in range(5):
        without, with_grad = write(plain, b), write(graph, b, requires_grad=True)
        for (k1, v1), (k2, v2) in zip(without, with_grad, strict=True):
            assert torch.equal(k1, k2)
            assert torch.equal(v1, v2)
            assert k2.requires_grad
    assert not graph.k.requires_grad
    assert torch.equal(plain.k, graph.k)


def test_bytes_are_counted_once() -> None:
    cond = condition()
    cache = RollingCache.allocate(cond, 3, TOKENS)
    write(cache, 0)
    tokens = REFERENCE + MOTION + 3 * TOKENS
    assert cache.nbytes == 2 * 4 * LAYERS * tokens * HEADS * WIDTH


@pytest.mark.parametrize("evict", ["oldest", "slot"])
@pytest.mark.parametrize("layers", [1, 2, 3])
def test_rings_on_the_host_are_the_same(evict: str, layers: int) -> None:
    cond = condition()
    cond.k, cond.v = (torch.cat([x, x[:1] + 1])[:layers] for x in (cond.k, cond.v))
    buffers = LayerBuffers(torch.device("cpu"))
    pairs = [[make(cond, 3, TOKENS, evict) for make in (RollingCache.allocate, buffers.allocate)] for _ in range(2)]
    draws = torch.Generator().manual_seed(3)
    reference = torch.randn(layers, BATCH, REFERENCE, HEADS, WIDTH, generator=draws)
    for block in [0, 1, 2, 3, 5, 6, 7, 9]:
        for number, pair in enumerate(pairs):
            if block == 5 and number == 1:
                for ring in pair:
                    ring.set_condition(condition(seed=4) if layers == 2 else cond)
            passes = 2 if block == 3 else 1  # block 3 is written twice, as with a clean history
            for ring in pair:
                ring.begin(block)
                ring.set_reference(reference + block)
            for layer in list(range(layers)) * passes:
                k, v = (torch.randn(BATCH, TOKENS, HEADS, WIDTH, generator=draws) for _ in "kv")
                (wanted_k, wanted_v), (got_k, got_v) = (ring.update(layer, k, v) for ring in pair)
                assert torch.equal(got_k, wanted_k) and torch.equal(got_v, wanted_v)
                if block == 6 and layer == 0 and number == 0 and evict == "oldest":
                    break  # given up; the next block takes its slot
            else:
                for ring in pair:
                    ring.advance()
    sides = {t.data_ptr() for _, ring in pairs for t in (ring.k, ring.v)}
    assert len(sides) == 2, "all rings share the buffers"
