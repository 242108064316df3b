"""Codes and layouts against nested Python lists, on random layouts of several groups and depths."""

from __future__ import annotations

import json
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
import torch.utils._pytree as pytree
from hypothesis import given
from hypothesis import strategies as st

from hq_tokenizers.codes import CodeGroup, CodeLayout, Codes

GROUPS = st.builds(
    CodeGroup,
    height=st.integers(1, 4),
    width=st.integers(1, 4),
    codebook_sizes=st.lists(st.integers(1, 1000), min_size=1, max_size=4).map(tuple),
)
LAYOUTS = st.lists(GROUPS, min_size=1, max_size=4).map(lambda groups: CodeLayout(tuple(groups)))
HYBRID = CodeLayout((CodeGroup(1, 2, (4,)), CodeGroup(2, 3, (8, 16)), CodeGroup(4, 6, (32, 2, 5))))


def random_codes(layout: CodeLayout, batch_size: int, seed: int = 0) -> Codes:
    generator = torch.Generator().manual_seed(seed)
    groups = []
    for group in layout.groups:
        shape = (batch_size, group.height, group.width)
        levels = [torch.randint(size, shape, generator=generator) for size in group.codebook_sizes]
        groups.append(torch.stack(levels, dim=-1))
    return Codes(tuple(groups), layout)


@st.composite
def codes_and_num_levels(draw: st.DrawFn) -> tuple[Codes, int]:
    codes = random_codes(draw(LAYOUTS), draw(st.integers(0, 3)), draw(st.integers(0, 2**32)))
    return codes, draw(st.integers(1, codes.num_levels))


CODES = codes_and_num_levels().map(lambda drawn: drawn[0])


def positions_in_order(layout: CodeLayout) -> list[tuple[int, int, int, int]]:
    """(group, row, column, depth) of the T codes, by the definition: groups, raster order, depth innermost."""
    return [
        (g, row, column, depth)
        for g, group in enumerate(layout.groups)
        for row in range(group.height)
        for column in range(group.width)
        for depth in range(len(group.codebook_sizes))
    ]


class TestFlatten:
    @given(CODES)
    def test_order_is_that_of_nested_loops(self, codes: Codes) -> None:
        lists = [group.tolist() for group in codes.groups]
        expected = [
            [lists[g][image][row][column][depth] for g, row, column, depth in positions_in_order(codes.layout)]
            for image in range(codes.batch_size)
        ]
        flat = codes.flatten()
        assert flat.shape == (codes.batch_size, codes.layout.num_codes)
        assert flat.tolist() == expected

    @given(CODES)
    def test_unflatten_is_the_inverse(self, codes: Codes) -> None:
        assert codes.layout.unflatten(codes.flatten()) == codes

    @given(LAYOUTS, st.integers(0, 3))
    def test_flatten_is_the_inverse_of_unflatten(self, layout: CodeLayout, batch_size: int) -> None:
        flat = torch.arange(batch_size * layout.num_codes).reshape(batch_size, layout.num_codes)
        assert torch.equal(layout.unflatten(flat).flatten(), flat)

    @given(LAYOUTS)
    def test_level_of_code_counts_the_levels_before(self, layout: CodeLayout) -> None:
        depths = [len(group.codebook_sizes) for group in layout.groups]
        expected = [sum(depths[:g]) + depth for g, _, _, depth in positions_in_order(layout)]
        assert layout.level_of_code().tolist() == expected

    @given(LAYOUTS)
    def test_first_levels_are_those_of_depth_zero(self, layout: CodeLayout) -> None:
        expected = [level for level, (_, depth) in enumerate(layout.levels()) if depth == 0]
        assert [layout.first_level(group) for group in range(len(layout.groups))] == expected
        assert layout.first_level(len(layout.groups)) == layout.num_levels

    @given(CODES)
    def test_level_of_code_agrees_with_levels(self, codes: Codes) -> None:
        level_of_code = codes.layout.level_of_code()
        for level, values in enumerate(codes.levels()):
            assert torch.equal(codes.flatten()[:, level_of_code == level], values.flatten(1))

    @pytest.mark.parametrize("shape", [(2, 5), (14,), (2, 7, 2)])
    def test_wrong_shape_is_refused_with_the_right_one(self, shape: tuple[int, ...]) -> None:
        layout = CodeLayout((CodeGroup(1, 2, (4,)), CodeGroup(2, 3, (8, 8))))
        with pytest.raises(ValueError, match=r"1×2×1 of 4 \+ 2×3×2 of 8 have shape \(batch, 14\), got \("):
            layout.unflatten(torch.zeros(shape, dtype=torch.long))


class TestLayout:
    @given(LAYOUTS)
    def test_counts(self, layout: CodeLayout) -> None:
        positions = positions_in_order(layout)
        assert layout.num_codes == len(positions) == sum(group.num_codes for group in layout.groups)
        assert layout.num_positions == len({position[:3] for position in positions})
        levels = sorted({(g, depth) for g, _, _, depth in positions})
        assert list(layout.levels()) == levels
        assert layout.num_levels == len(levels)
        assert layout.codebook_sizes == tuple(layout.groups[g].codebook_sizes[depth] for g, depth in levels)

    def test_bits_per_image_by_hand(self) -> None:
        # 2·log2 4 + 6·(log2 8 + log2 16) + 24·(log2 32 + log2 2 + log2 5) = 4 + 42 + 144 + 24·log2 5
        assert HYBRID.bits_per_image == pytest.approx(190 + 24 * math.log2(5), rel=1e-12)
        assert random_codes(HYBRID, 2).bits_per_image == HYBRID.bits_per_image
        assert CodeLayout((CodeGroup(8, 8, (512,)),)).bits_per_image == 576
        assert CodeLayout((CodeGroup(8, 8, (1,)),)).bits_per_image == 0

    @given(LAYOUTS)
    def test_bits_per_image_is_the_log_of_the_number_of_images(self, layout: CodeLayout) -> None:
        images = math.prod(layout.groups[g].codebook_sizes[depth] for g, _, _, depth in positions_in_order(layout))
        assert layout.bits_per_image == pytest.approx(math.log2(images), rel=1e-9, abs=1e-9)

    @given(LAYOUTS)
    def test_json_round_trip(self, layout: CodeLayout) -> None:
        again = CodeLayout.from_dict(json.loads(json.dumps(layout.to_dict())))
        assert again == layout
        assert hash(again) == hash(layout)

    @given(LAYOUTS, LAYOUTS)
    def test_equality_is_that_of_the_descriptions(self, a: CodeLayout, b: CodeLayout) -> None:
        assert (a == b) == (a.to_dict() == b.to_dict())

    @pytest.mark.parametrize(
        "data",
        [
            None,
            {},
            {"groups": 3},
            {"groups": [{"height": 2, "width": 2}]},
            {"groups": [{"height": 2, "width": 2, "codebook_sizes": 3}]},
            {"groups": [{"height": "2", "width": 2, "codebook_sizes": [3]}]},
        ],
    )
    def test_wrong_description_is_shown_beside_the_right_one(self, data: object) -> None:
        with pytest.raises(ValueError, match="A code layout is described as") as caught:
            CodeLayout.from_dict(data)  # type: ignore[arg-type]
        assert repr(data) in str(caught.value)

    @pytest.mark.parametrize("size", [(0, 2), (2, 0), (-1, 2)])
    def test_empty_grid_is_refused(self, size: tuple[int, int]) -> None:
        with pytest.raises(ValueError, match=f"at least 1, got {size[0]}×{size[1]}"):
            CodeGroup(*size, (4,))

    @pytest.mark.parametrize("sizes", [(), (4, 0), (-1,)])
    def test_empty_codebook_is_refused(self, sizes: tuple[int, ...]) -> None:
        with pytest.raises(ValueError, match="one codebook size of at least 1 per depth level") as caught:
            CodeGroup(2, 2, sizes)
        assert str(sizes) in str(caught.value)

    def test_no_group_is_refused(self) -> None:
        with pytest.raises(ValueError, match="at least one group"):
            CodeLayout(())

    def test_lists_are_accepted_and_frozen(self) -> None:
        layout = CodeLayout([CodeGroup(2, 2, [4, 4])])  # type: ignore[arg-type, list-item]
        assert layout == CodeLayout((CodeGroup(2, 2, (4, 4)),))
        assert layout in {layout}

    @given(LAYOUTS)
    def test_text_round_trip(self, layout: CodeLayout) -> None:
        assert CodeLayout.parse(str(layout)) == CodeLayout.parse(layout.to_dict()) == CodeLayout.parse(layout) == layout

    def test_text_as_it_is_typed(self) -> None:
        expected = CodeLayout((CodeGroup(4, 4, (512,)), CodeGroup(8, 6, (256, 256))))
        assert CodeLayout.parse("4x4 of 512 + 8x6x2 of 256") == expected
        assert CodeLayout.parse("4x4x1 of 512+8x6 of 256/256 ") == expected

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "8x8",
            "8x8 of",
            "8x8x2x2 of 4",
            "8x8 of 4 +",
            "-1x8 of 4",
            "8x8 of 4,4",
            "٣x٣ of 4",
            "1" * 5000 + "x8 of 4",
        ],
    )
    def test_other_text_is_shown_beside_the_right_one(self, text: str) -> None:
        with pytest.raises(ValueError, match="written as '8x8 of 512', '8x8x4 of 512' or") as caught:
            CodeLayout.parse(text)
        assert repr(text) in str(caught.value)

    def test_other_things_and_empty_codebooks(self) -> None:
        with pytest.raises(ValueError, match=r"or text such as '8x8x4 of 512', got 5"):
            CodeLayout.parse(5)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=r"'8x8x2 of 0': A code group needs one codebook size of at least 1"):
            CodeLayout.parse("8x8x2 of 0")

    def test_text_that_contradicts_itself(self) -> None:
        with pytest.raises(
            ValueError, match=r"'8x8x3 of 4/4' in '2x2 .*' has 3 codes at a position and 2 codebook sizes"
        ):
            CodeLayout.parse("2x2 of 4 + 8x8x3 of 4/4")

    @pytest.mark.parametrize("depth", [0, 257, 999_999_999])
    def test_text_of_impossible_depth_is_refused_before_it_is_built(self, depth: int) -> None:
        with pytest.raises(ValueError, match=f"from 1 to 256 codes, got {depth} in '8x8x{depth} of 4'"):
            CodeLayout.parse(f"8x8x{depth} of 4")

    def test_text_names_grid_depth_and_codebooks(self) -> None:
        assert str(HYBRID) == "1×2×1 of 4 + 2×3×2 of 8/16 + 4×6×3 of 32/2/5"


class TestTruncate:
    @given(codes_and_num_levels())
    def test_keeps_the_first_levels(self, drawn: tuple[Codes, int]) -> None:
        codes, num_levels = drawn
        short = codes.truncate(num_levels)
        assert short.num_levels == num_levels == len(short.levels())
        assert short.layout == codes.layout.truncate(num_levels)
        assert short.layout.codebook_sizes == codes.layout.codebook_sizes[:num_levels]
        for kept, original in zip(short.levels(), codes.levels(), strict=False):
            assert torch.equal(kept, original)

    @given(codes_and_num_levels())
    def test_drops_the_flat_codes_of_the_other_levels(self, drawn: tuple[Codes, int]) -> None:
        codes, num_levels = drawn
        kept = codes.layout.level_of_code() < num_levels
        assert torch.equal(codes.truncate(num_levels).flatten(), codes.flatten()[:, kept])

    @given(CODES)
    def test_all_levels_change_nothing(self, codes: Codes) -> None:
        assert codes.truncate(codes.num_levels) == codes

    @given(codes_and_num_levels(), st.data())
    def test_twice_is_once_to_the_smaller(self, drawn: tuple[Codes, int], data: st.DataObject) -> None:
        codes, num_levels = drawn
        fewer = data.draw(st.integers(1, num_levels))
        assert codes.truncate(num_levels).truncate(fewer) == codes.truncate(fewer)

    @given(codes_and_num_levels())
    def test_never_adds_bits(self, drawn: tuple[Codes, int]) -> None:
        codes, num_levels = drawn
        share = Fraction(num_levels, codes.num_levels)
        short, full = codes.truncate(num_levels).bits_per_image, codes.bits_per_image
        assert short == pytest.approx(full) if share == 1 else short <= full * (1 + 1e-12)

    @pytest.mark.parametrize("num_levels", [0, -1, 7])
    def test_error_names_the_accepted_range(self, num_levels: int) -> None:
        for truncate in (HYBRID.truncate, random_codes(HYBRID, 1).truncate):
            with pytest.raises(ValueError, match=rf"between 1 and 6 .*: {num_levels}\."):
                truncate(num_levels)


class TestBatch:
    @given(codes_and_num_levels(), st.lists(st.integers(0, 3), min_size=1, max_size=3))
    def test_cat_and_truncate_commute(self, drawn: tuple[Codes, int], sizes: list[int]) -> None:
        codes, num_levels = drawn
        batches = [codes, *(random_codes(codes.layout, size, seed) for seed, size in enumerate(sizes))]
        together = Codes.cat(batches)
        assert len(together) == sum(map(len, batches))
        assert together.truncate(num_levels) == Codes.cat([batch.truncate(num_levels) for batch in batches])
        assert torch.equal(together.flatten(), torch.cat([batch.flatten() for batch in batches]))

    @given(CODES.filter(len))
    def test_cat_of_the_images_is_the_batch(self, codes: Codes) -> None:
        assert Codes.cat(list(codes)) == codes

    @given(CODES.filter(len), st.data())
    def test_indexing_selects_rows_of_the_flat_codes(self, codes: Codes, data: st.DataObject) -> None:
        size, flat = len(codes), codes.flatten()
        one = data.draw(st.integers(-size, size - 1))
        assert torch.equal(codes[one].flatten(), flat[one][None])
        some = data.draw(st.slices(size).filter(lambda part: part.step is None or part.step > 0))
        assert torch.equal(codes[some].flatten(), flat[some])
        many = data.draw(st.lists(st.integers(-size, size - 1), max_size=4))
        assert torch.equal(codes[many].flatten(), flat[torch.tensor(many, dtype=torch.long)])
        mask = torch.tensor(data.draw(st.lists(st.booleans(), min_size=size, max_size=size)))
        assert torch.equal(codes[mask].flatten(), flat[mask])

    @pytest.mark.parametrize("index", [2, -3])
    def test_index_out_of_range(self, index: int) -> None:
        with pytest.raises(IndexError, match=f"Index {index} is out of range for a batch of 2"):
            random_codes(HYBRID, 2)[index]

    def test_positions_are_not_indexed(self) -> None:
        with pytest.raises(TypeError, match="indexed by image only"):
            random_codes(HYBRID, 2)[0, 1]  # type: ignore[index]

    def test_cat_needs_equal_layouts(self) -> None:
        with pytest.raises(ValueError, match="at least one batch"):
            Codes.cat([])
        with pytest.raises(ValueError, match="1×2×1 of 4 and 1×2×1 of 5 differ"):
            Codes.cat([random_codes(CodeLayout((CodeGroup(1, 2, (size,)),)), 1) for size in (4, 5)])


class TestValues:
    @given(CODES)
    def test_codes_below_their_codebook_sizes_are_valid(self, codes: Codes) -> None:
        assert codes.validate() is codes

    @given(codes_and_num_levels().filter(lambda drawn: len(drawn[0]) > 0), st.integers(0, 5), st.booleans())
    def test_validate_names_level_and_value(self, drawn: tuple[Codes, int], excess: int, negative: bool) -> None:
        codes, num_levels = drawn
        level, size = num_levels - 1, codes.layout.codebook_sizes[num_levels - 1]
        wrong = -1 - excess if negative else size + excess
        codes.levels()[level][-1, -1, -1] = wrong
        with pytest.raises(ValueError, match=rf"level {num_levels} must lie in \[0, {size}\).*: found {wrong}\."):
            codes.validate()

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.bool, torch.complex64, torch.complex128])
    def test_only_integers_are_codes(self, dtype: torch.dtype) -> None:
        with pytest.raises(TypeError, match=f"Codes are integers, got {dtype}"):
            random_codes(HYBRID, 1).to(dtype)

    @pytest.mark.parametrize("dtype", [torch.int16, torch.int32, torch.uint8])
    def test_narrow_integers_keep_their_values(self, dtype: torch.dtype) -> None:
        codes = random_codes(HYBRID, 3)
        converted = HYBRID.unflatten(codes.flatten().to(dtype))
        assert converted == codes
        assert converted.flatten().dtype == torch.long

    def test_number_of_groups_must_agree(self) -> None:
        with pytest.raises(ValueError, match="has 3 groups, got 2"):
            Codes(random_codes(HYBRID, 1).groups[:2], HYBRID)

    @pytest.mark.parametrize("shape", [(), (2,), (2, 3, 2, 1), (2, 2, 3), (2, 2, 3, 2)])
    def test_shape_must_agree(self, shape: tuple[int, ...]) -> None:
        layout = CodeLayout((CodeGroup(2, 3, (8,)),))
        with pytest.raises(ValueError, match="Codes of the group 2×3×1 of 8 have shape"):
            Codes((torch.zeros(shape, dtype=torch.long),), layout)

    def test_batch_sizes_must_agree(self) -> None:
        two, three = random_codes(HYBRID, 2), random_codes(HYBRID, 3)
        with pytest.raises(ValueError, match=r"shape \(2, 2, 3, 2\), got \(3, 2, 3, 2\)"):
            Codes((two.groups[0], *three.groups[1:]), HYBRID)

    @given(codes_and_num_levels().filter(lambda drawn: len(drawn[0]) > 0))
    def test_equality_sees_every_level(self, drawn: tuple[Codes, int]) -> None:
        codes, num_levels = drawn
        other = codes.layout.unflatten(codes.flatten().clone())
        assert other == codes
        other.levels()[num_levels - 1][0, 0, 0] += 1
        assert other != codes

    def test_equality_with_other_things(self) -> None:
        codes = random_codes(HYBRID, 2)
        assert codes != codes.flatten().tolist()
        assert codes != codes[:1]
        relabelled = CodeLayout((*HYBRID.groups[:2], CodeGroup(4, 6, (32, 2, 6))))
        assert codes != Codes(codes.groups, relabelled)

    def test_mutable_contents_are_not_hashable(self) -> None:
        with pytest.raises(TypeError, match="unhashable"):
            hash(random_codes(HYBRID, 1))


class TestPytree:
    @given(CODES)
    def test_round_trip(self, codes: Codes) -> None:
        leaves, spec = pytree.tree_flatten(codes)
        assert len(leaves) == len(codes.layout.groups)
        assert pytree.tree_unflatten(leaves, spec) == codes

    @given(CODES)
    def test_map_reaches_every_code(self, codes: Codes) -> None:
        mapped = pytree.tree_map(lambda leaf: leaf + 1, {"codes": [codes]})["codes"][0]
        assert isinstance(mapped, Codes)
        assert torch.equal(mapped.flatten(), codes.flatten() + 1)

    def test_leaves_need_not_be_tensors(self) -> None:
        shapes = pytree.tree_map(lambda leaf: tuple(leaf.shape), random_codes(HYBRID, 2))
        assert shapes.groups == ((2, 1, 2, 1), (2, 2, 3, 2), (2, 4, 6, 3))


def test_a_layout_in_numbers_of_numpy_is_json_ready() -> None:
    layout = CodeLayout((CodeGroup(np.int64(2), np.int32(3), (np.int64(5), np.uint8(7))),))
    plain = CodeLayout((CodeGroup(2, 3, (5, 7)),))
    assert layout == plain
    assert json.dumps(layout.to_dict()) == json.dumps(plain.to_dict())


@given(layout=LAYOUTS)
def test_a_data_loader_makes_batches_of_codes(layout: CodeLayout) -> None:
    codes = [random_codes(layout, 1, seed) for seed in range(3)]
    assert torch.utils.data.default_collate(codes) == Codes.cat(codes)
    rows = [{"codes": item, "class_labels": index} for index, item in enumerate(codes)]
    first, second = torch.utils.data.DataLoader(rows, batch_size=2)
    assert first["codes"] == Codes.cat(codes[:2])
    assert second["codes"] == codes[2]
    assert first["class_labels"].tolist() == [0, 1]


def test_unflatten_takes_what_data_sets_give():
    import datasets

    layout = CodeLayout((CodeGroup(1, 2, (4,)), CodeGroup(2, 2, (4,))))
    flat = torch.arange(12).reshape(2, 6) % 4
    column = datasets.Dataset.from_dict({"codes": flat.tolist()})
    for codes in (flat.tolist(), flat.numpy(), column["codes"], column.with_format("torch")["codes"]):
        assert layout.unflatten(codes) == layout.unflatten(flat)
    with pytest.raises(ValueError, match=r"shape \(batch, 6\), got \(2, 5\)"):
        layout.unflatten(flat[:, :5].tolist())
