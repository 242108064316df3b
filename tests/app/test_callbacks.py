"""What the tabs give back: the pipeline's own results, for generators of any kind."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("gradio", reason="needs the extra: pip install 'hq_tokenizers[app]'")

import gradio as gr

from hq_tokenizers.app.blocks import build_app, describe_generator
from hq_tokenizers.app.codebook_tab import CodebookTab, level_counts, usage_table
from hq_tokenizers.app.generate_tab import GenerateTab
from hq_tokenizers.app.image_input import ImageInput, seen_by_generator
from hq_tokenizers.app.inpaint_tab import InpaintTab, painted_mask
from hq_tokenizers.app.previews import Result, Step, sampling_steps
from hq_tokenizers.app.reconstruct_tab import ReconstructTab
from hq_tokenizers.app.sampling_controls import SamplingControls
from hq_tokenizers.app.variations_tab import VariationsTab

# Others than the defaults.
STEPS = {"num_steps": 3, "num_draft_steps": 4, "num_revise_steps": 3, "num_revisions": 1}


def built(tab):
    with gr.Blocks(analytics_enabled=False):
        tab.build()
    return tab


def values(tab, **chosen):
    """The values of the controls of a tab, in their order."""
    chosen = {"class_labels": 1, "temperature": 1.0, "guidance_scale": 1.0, **STEPS, **chosen}
    return [chosen[name] for name in tab.controls.arguments_shown]


def last(steps):
    *_, (pictures, said) = steps
    return [picture for picture, _ in pictures], [caption for _, caption in pictures], said


def same(images, expected):
    return len(images) == len(expected) and all(
        image.tobytes() == other.tobytes() for image, other in zip(images, expected, strict=True)
    )


def label_of(pipe):
    return 1 if pipe.model.config.id2label else None


def steps_of(pipe):
    known = {
        "masked_prior": ["num_steps"],
        "contextual_prior": ["num_draft_steps", "num_revise_steps", "num_revisions"],
    }
    return {name: STEPS[name] for name in known.get(pipe.model.prior.config.model_type, [])}


def test_the_page_has_every_tab(any_pipe):
    page = build_app(any_pipe)
    titles = [block.label for block in page.blocks.values() if isinstance(block, gr.Tab)]
    assert titles == ["Generate", "Reconstruct", "Inpaint", "Variations", "Codebook"]
    names = {function.api_name for function in page.fns.values() if function.api_visibility == "public"}
    assert names == {"generate", "reconstruct", "inpaint", "variations"}
    assert page.analytics_enabled is False


def test_the_page_says_what_the_generator_is(pipe, hierarchical_pipe):
    assert describe_generator(pipe) == (
        "A generator of 8×8 grey images of 3 classes. An image is 16 codes, 4×4×1 of 16 (64 bits), "
        "drawn by its rq_prior."
    )
    assert "8×12 colour images of 2 classes" in describe_generator(hierarchical_pipe)


def test_draws_what_the_pipeline_draws(any_pipe):
    tab = built(GenerateTab(any_pipe))
    images, captions, said = last(tab.draw(*values(tab, num_images=3, seed=5)))
    assert same(images, any_pipe(label_of(any_pipe), num_images=3, seed=5, **steps_of(any_pipe)))
    assert captions == ["seed 5", "seed 6", "seed 7"]
    assert said.startswith("3 images in ")
    again, _, _ = last(tab.draw(*values(tab, num_images=1, seed=7)))
    assert same(again, images[2:])


def test_without_a_seed_images_differ(pipe):
    tab = built(GenerateTab(pipe))
    first, second = (last(tab.draw(*values(tab, num_images=4, seed=None))) for _ in range(2))
    assert not same(first[0], second[0])
    assert first[1] == [""] * 4


def test_settings_reach_the_pipeline(pipe):
    tab = built(GenerateTab(pipe))
    chosen = {"num_images": 4, "seed": 0, "temperature": 0.3, "guidance_scale": 3.0, "class_labels": 2}
    images, _, _ = last(tab.draw(*values(tab, **chosen)))
    assert same(images, pipe("frog", num_images=4, seed=0, temperature=0.3, guidance_scale=3.0))
    assert not same(images, pipe("frog", num_images=4, seed=0))


@pytest.mark.parametrize(
    ("name", "controls"),
    [
        ("pipe", ["class_labels", "num_images", "seed", "temperature", "guidance_scale"]),
        ("unconditional_pipe", ["num_images", "seed", "temperature"]),
        ("hierarchical_pipe", ["class_labels", "num_images", "seed", "temperature", "guidance_scale", "num_steps"]),
        (
            "contextual_pipe",
            ["num_images", "seed", "temperature", "num_draft_steps", "num_revise_steps", "num_revisions"],
        ),
    ],
)
def test_only_what_a_generator_understands_is_asked(name, controls, request):
    shown = SamplingControls(request.getfixturevalue(name))
    with gr.Blocks(analytics_enabled=False):
        shown.build(4)
    assert shown.arguments_shown == controls


def test_steps_begin_where_the_generator_would(contextual_pipe, hierarchical_pipe, monkeypatch):
    from hq_tokenizers.priors import CodeGenerationConfig

    def shown(pipe):
        controls = SamplingControls(pipe)
        with gr.Blocks(analytics_enabled=False):
            components = controls.build(4)
        return dict(zip(controls.arguments_shown, (component.value for component in components), strict=True))

    prior = contextual_pipe.model.prior
    # 12 steps, then two revisions in two.
    assert [shown(contextual_pipe)[name] for name in steps_of(contextual_pipe)] == [12, 2, 2]
    saved = CodeGenerationConfig(num_draft_steps=5, num_revisions=0)
    monkeypatch.setattr(prior, "generation_config", saved)
    assert [shown(contextual_pipe)[name] for name in steps_of(contextual_pipe)] == [5, 2, 0]
    monkeypatch.setattr(hierarchical_pipe.model.prior, "generation_config", CodeGenerationConfig(num_steps=[1, 2, 3]))
    assert shown(hierarchical_pipe)["num_steps"] is None


def test_settings_saved_by_level_are_kept_unless_replaced(hierarchical_pipe, monkeypatch):
    from hq_tokenizers.priors import CodeGenerationConfig

    saved = CodeGenerationConfig(temperature=[0.5, 1.0, 2.0])
    monkeypatch.setattr(hierarchical_pipe.model.prior, "generation_config", saved)
    tab = built(GenerateTab(hierarchical_pipe))
    images, _, _ = last(tab.draw(*values(tab, num_images=4, seed=0, temperature=None)))
    assert same(images, hierarchical_pipe("dog", num_images=4, seed=0, num_steps=3, temperature=[0.5, 1.0, 2.0]))
    images, _, _ = last(tab.draw(*values(tab, num_images=4, seed=0, temperature=0.5)))
    assert same(images, hierarchical_pipe("dog", num_images=4, seed=0, num_steps=3, temperature=0.5))


def test_steps_are_shown_as_they_are_done(any_pipe):
    settings = {"num_images": 2, "seed": 0, **steps_of(any_pipe)}
    *steps, result = sampling_steps(
        any_pipe, lambda on_step: any_pipe(callback_on_step_end=on_step, **settings), seconds=0
    )
    assert [step.done for step in steps] == list(range(1, steps[-1].total))
    assert all(isinstance(step, Step) and len(step.images) == 2 for step in steps)
    assert isinstance(result, Result)
    assert same(result.value, any_pipe(**settings))


def test_a_closed_page_stops_sampling(pipe):
    done = []

    def call(on_step):
        def watched(*step):
            done.append(step[0])
            on_step(*step)

        return pipe(callback_on_step_end=watched, seed=0)

    steps = sampling_steps(pipe, call, seconds=0)
    next(steps)
    steps.close()
    assert max(done) < 16


def test_reconstructs_as_the_pipeline_does(any_pipe, image_file):
    tab = built(ReconstructTab(any_pipe))
    levels = any_pipe.model.code_layout.num_levels
    for count in range(1, levels + 1):
        seen, again, grids, said = tab.reconstruct(image_file, count)
        assert same([again], [any_pipe.reconstruct(image_file, num_levels=count)])
        assert len(grids) == count
        assert said.startswith(f"{any_pipe.model.code_layout.truncate(count).num_codes} codes, ")
    height, width = any_pipe.image_processor.size.height, any_pipe.image_processor.size.width
    assert seen.size == (width, height)
    assert same([tab.reconstruct(seen, levels)[0]], [seen])
    assert tab.reconstruct(None, 1) == (None, None, [], "")


def test_inpaints_as_the_pipeline_does(any_pipe, image_file):
    tab = built(InpaintTab(any_pipe))
    shown = tab.show_in_editor(image_file)["background"]
    seen = seen_by_generator(any_pipe, image_file)
    factor = shown.height // seen.height
    assert shown.size == (seen.width * factor, seen.height * factor)
    assert min(shown.size) >= 320
    layer = Image.new("RGBA", shown.size, (0, 0, 0, 0))
    layer.paste((255, 0, 255, 255), (0, shown.height // 2, shown.width // 2, shown.height))
    edited = {"background": shown, "layers": [layer], "composite": None}
    images, _, _ = last(tab.repaint(image_file, edited, *values(tab, num_images=2, seed=3)))
    mask = np.zeros((seen.height, seen.width), bool)
    mask[seen.height // 2 :, : seen.width // 2] = True
    expected = any_pipe.inpaint(seen, mask, class_labels=label_of(any_pipe), num_images=2, seed=3, **steps_of(any_pipe))
    assert same(images, expected)
    kept = np.asarray(images[0])[~mask]
    assert (kept == np.asarray(seen)[~mask]).all()


def test_a_mask_is_what_is_painted_in_any_layer():
    """Of an image of 2 × 4 pixels on a canvas three times as large."""
    layers = [Image.new("RGBA", (12, 6), (9, 9, 9, 0)) for _ in range(2)]
    layers[0].putpixel((3, 2), (0, 0, 0, 255))
    layers[1].paste((255, 255, 255, 255), (9, 3, 12, 6))
    layers[1].putpixel((0, 0), (255, 255, 255, 1))
    expected = [[False, True, False, False], [False, False, False, True]]
    assert painted_mask({"layers": layers}, (4, 2)).tolist() == expected


@pytest.mark.parametrize("edited", [None, {"layers": []}, {"layers": [Image.new("RGBA", (8, 8))]}])
def test_nothing_painted_is_said(pipe, image_file, edited):
    tab = built(InpaintTab(pipe))
    with pytest.raises(gr.Error, match="Nothing is marked"):
        list(tab.repaint(image_file, edited, *values(tab, num_images=1, seed=0)))


def test_varies_as_the_pipeline_does(any_pipe, image_file):
    tab = built(VariationsTab(any_pipe))
    for kept in (0, any_pipe.model.code_layout.num_levels):
        images, _, _ = last(tab.vary(image_file, kept, *values(tab, num_images=2, seed=1)))
        expected = any_pipe.variations(
            image_file, kept, class_labels=label_of(any_pipe), num_images=2, seed=1, **steps_of(any_pipe)
        )
        assert same(images, expected)
    assert same(images[:1], [any_pipe.reconstruct(image_file)])


def test_counts_codes_of_drawn_images(any_pipe):
    tab = built(CodebookTab(any_pipe))
    codes, table = tab.count(None, 6, 0)
    names = any_pipe.model.config.id2label
    labels = [index % len(names) if names else None for index in range(6)]
    flat = torch.cat([one.flatten() for one in any_pipe(labels, seed=0, output_type="codes")])
    assert torch.equal(codes.flatten(), flat)
    rows = [row.split("|")[1:-1] for row in table.splitlines()[4:]]
    for level, row in enumerate(rows):
        values, size = codes.levels()[level].flatten().tolist(), codes.layout.codebook_sizes[level]
        shares = np.bincount(values, minlength=size) / len(values)
        perplexity = np.exp(-sum(share * np.log(share) for share in shares if share))
        assert row[2:] == [
            f" {size} ",
            f" {len(set(values))} ",
            f" {perplexity:.1f} ",
            f" {perplexity / size:.0%} ",
        ]
    assert len(rows) == codes.num_levels


def test_counts_codes_of_files(hierarchical_pipe, image_file):
    codes, _ = CodebookTab(hierarchical_pipe).count([image_file, image_file], 64, None)
    assert codes[0] == hierarchical_pipe.reconstruct(image_file, output_type="codes")
    assert codes.batch_size == 2


def test_shows_the_codes_by_their_use(hierarchical_pipe):
    tab = CodebookTab(hierarchical_pipe)
    codes, _ = tab.count(None, 8, 0)
    for level in range(3):
        plot, title, pictures = tab.show_level(codes, level + 1)
        counts = level_counts(codes)[level]
        numbers = [int(caption.partition(":")[0]) for _, caption in pictures["value"]]
        assert sorted(numbers) == list(range(len(counts)))
        assert counts[numbers].diff().max() <= 0
        assert title.startswith(f"Level {level + 1}, all {len(counts)} codes")
        assert plot["value"]["share"].sum() == pytest.approx(100, rel=1e-5)
    assert usage_table(codes).count("\n") == 6


def test_before_anything_is_counted_nothing_changes(pipe):
    assert CodebookTab(pipe).show_level(None, 1) == (gr.skip(),) * 3


def test_draws_one_to_work_on(any_pipe):
    drawn = [ImageInput(any_pipe).draw_one() for _ in range(2)]
    assert drawn[0].size == seen_by_generator(any_pipe, drawn[0]).size
    assert drawn[0].tobytes() != drawn[1].tobytes()


def test_draws_one_of_the_class_that_is_chosen(pipe, monkeypatch):
    monkeypatch.setattr("random.randrange", lambda end: 4)
    assert same([ImageInput(pipe).draw_one(2)], [pipe("frog", seed=4)])


def test_errors_have_the_librarys_words(pipe, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    for path, words in ((None, "There is no image yet"), (str(broken), r"broken\.png")):
        tab = built(VariationsTab(pipe))
        with pytest.raises(gr.Error, match=words):
            list(tab.vary(path, 1, *values(tab, num_images=1, seed=0)))
    tab = built(GenerateTab(pipe))
    with pytest.raises(gr.Error) as shown:
        list(tab.draw(*values(tab, num_images=1, seed=0, temperature=-1.0)))
    with pytest.raises(ValueError, match="temperature") as said:
        pipe(seed=0, temperature=-1.0)
    assert shown.value.message == str(said.value)
