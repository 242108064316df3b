from __future__ import annotations

from pathlib import Path

import pytest

from hq_tokenizers.codes import CodeLayout
from hq_tokenizers.priors import RQPriorConfig


def test_round_trip(tmp_path: Path, mixed_layout: CodeLayout) -> None:
    config = RQPriorConfig(code_layout=mixed_layout.to_dict(), num_classes=2, id2label={0: "cat", 1: "dog"})
    config.save_pretrained(tmp_path)
    loaded = RQPriorConfig.from_pretrained(tmp_path)
    assert loaded.layout == mixed_layout
    assert loaded.id2label == {0: "cat", 1: "dog"}
    assert loaded.to_dict() == config.to_dict()


def test_a_layout_as_it_is_printed(tmp_path: Path, mixed_layout: CodeLayout) -> None:
    config = RQPriorConfig(code_layout=str(mixed_layout))
    assert config.to_dict()["code_layout"] == mixed_layout.to_dict()
    RQPriorConfig().save_pretrained(tmp_path)
    assert RQPriorConfig.from_pretrained(tmp_path, code_layout=str(mixed_layout)).layout == mixed_layout


def test_labels_and_widths_follow_from_the_rest() -> None:
    config = RQPriorConfig(num_classes=5, hidden_size=96)
    assert len(config.id2label) == 5
    assert config.intermediate_size == 256
    assert RQPriorConfig(num_classes=0).id2label == {}
    assert RQPriorConfig(intermediate_size=100).intermediate_size == 100
    assert RQPriorConfig(hidden_size=96, block_type="gpt").intermediate_size == 384


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_classes": -1}, "num_classes must be an integer from 0 to 1,000,000, got -1"),
        ({"hidden_size": 0}, "hidden_size must be an integer from 1"),
        ({"hidden_size": 30, "num_attention_heads": 4}, "hidden_size 30 is not a multiple of num_attention_heads 4"),
        ({"num_depth_layers": 0}, "num_depth_layers must be"),
        ({"num_hidden_layers": 2.5}, "num_hidden_layers must be an integer"),
        ({"dropout": 1.0}, r"dropout must be a number of at least 0 and below 1, got 1.0"),
        ({"dropout": "0.1"}, r"dropout must be a number of at least 0 and below 1, got '0.1'"),
        ({"label_dropout": -0.1}, "label_dropout must be a number of at least 0 and below 1"),
        ({"label_smoothing": 2}, "label_smoothing must be a number of at least 0 and below 1"),
        ({"initializer_range": 0}, "initializer_range must be a number above 0"),
        ({"code_layout": {"groups": [{"height": 3}]}}, "A code layout is described as"),
        ({"code_layout": "0x8 of 4"}, "code_layout describes no layout: .* at least 1, got 0×8"),
        (
            {"code_layout": "8x8 of many"},
            "code_layout describes no layout: A code layout is written as '8x8 of 512'.*, got '8x8 of many'",
        ),
        ({"position_embedding": "sine"}, "position_embedding must be one of 'learned', 'rotary', got 'sine'"),
        ({"position_embedding": "rotary", "hidden_size": 24}, "must be a multiple of 4, got 6"),
        ({"block_type": "bert"}, "block_type must be one of 'llama', 'gpt', got 'bert'"),
        ({"norm_eps": 0.0}, "norm_eps must be a number above 0 and at most 1, got 0.0"),
        ({"input_embeddings": "vectors"}, "input_embeddings must be one of 'learned', 'code_vectors'"),
        ({"input_embeddings": "code_vectors"}, "needs code_vector_dim, .*got None"),
        ({"input_embeddings": "code_vectors", "code_vector_dim": [4, 4]}, r"one per group \(1 here\), got \[4, 4\]"),
        ({"code_vector_dim": 4}, 'code_vector_dim=4 needs input_embeddings="code_vectors"'),
        ({"cross_attention_dim": 0}, "cross_attention_dim must be an integer from 1 to 65,536 or null, got 0"),
        ({"num_classes": 3, "id2label": {0: "a"}}, "id2label names 1 classes, num_classes is 3"),
    ],
)
def test_bad_fields_are_named(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RQPriorConfig(**fields)
