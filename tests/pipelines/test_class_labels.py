from __future__ import annotations

import numpy as np
import pytest
import torch

from hq_tokenizers.pipelines.class_labels import is_single_label, resolve_class_labels

NAMES = {0: "cat", 1: "dog", 2: "frog"}
MANY = dict(enumerate(["goldfish", "great white shark", *(f"bird {i}" for i in range(18))]))


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ("dog", [1]),
        ("DOG", [1]),
        (2, [2]),
        (None, [-1]),
        (-1, [-1]),
        (["frog", 0, None], [2, 0, -1]),
        (("cat", "cat"), [0, 0]),
        (np.array([2, 1]), [2, 1]),
        (np.array(["dog"]), [1]),
        (np.int64(1), [1]),
        (torch.tensor([0, 2]), [0, 2]),
        (torch.tensor(2), [2]),
        ([], []),
    ],
)
def test_resolves(labels, expected):
    assert resolve_class_labels(labels, NAMES) == expected


@pytest.mark.parametrize("label", ["cat", 1, None, np.int64(1), torch.tensor(1)])
def test_single(label):
    assert is_single_label(label)


@pytest.mark.parametrize("labels", [["cat"], (), np.array([1]), torch.tensor([1])])
def test_several(labels):
    assert not is_single_label(labels)


@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        (3, ValueError, "3 is out of range: this model has the classes 0 to 2"),
        (-2, ValueError, "out of range"),
        (["cat", 7], ValueError, "7 is out of range"),
        ("cow", ValueError, r"'cow'; the classes are 'cat', 'dog', 'frog'\.$"),
        ("Forg", ValueError, r"the classes are 'cat', 'dog', 'frog'\. Did you mean 'frog'\?"),
        (1.0, TypeError, "1.0 of type float"),
        (True, TypeError, "True of type bool"),
        ([["cat"]], TypeError, "list"),
        ({"cat"}, TypeError, "give a list, not a set"),
    ],
)
def test_refuses(labels, error, message):
    with pytest.raises(error, match=message):
        resolve_class_labels(labels, NAMES)


def test_unknown_name_lists_the_nearest_ones_first():
    with pytest.raises(ValueError, match=r"nearest of the 20 names are 'great white shark'") as caught:
        resolve_class_labels("white shark", MANY)
    assert "bird 17" not in str(caught.value)


def test_ambiguous_name_gives_the_ids():
    with pytest.raises(ValueError, match=r"ids \[0, 1\]"):
        resolve_class_labels("crane", {0: "crane", 1: "crane"})


def test_exact_name_wins_over_another_case():
    assert resolve_class_labels("Crane", {0: "crane", 1: "Crane"}) == [1]


CLOTHES = {0: "T-shirt/top", 1: "Shirt", 2: "Ankle boot", 3: "tench, Tinca tinca", 4: "C", 5: "C++"}


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ("ankle boot", 2),
        ("ankle-boot", 2),
        ("Ankle_Boot", 2),
        ("ankleboot", 2),
        ("shirt", 1),  # not the T-shirt
        ("t-shirt", 0),
        ("T shirt", 0),
        ("top", 0),
        ("tinca tinca", 3),
        ("tench", 3),
        ("tench, tinca tinca", 3),
        ("c++", 5),
        ("c", 4),
    ],
)
def test_a_name_is_known_in_another_spelling(label, expected):
    assert resolve_class_labels(label, CLOTHES) == [expected]


@pytest.mark.parametrize("label", ["boot", "-", "", "/", "tench tinca"])
def test_a_part_of_a_name_is_no_name(label):
    with pytest.raises(ValueError, match="Unknown class"):
        resolve_class_labels(label, CLOTHES)


def test_a_name_of_two_classes_gives_the_ids():
    with pytest.raises(ValueError, match=r"'crane': give one of the ids \[0, 1\]"):
        resolve_class_labels("crane", {0: "crane, bird", 1: "crane, machine"})


@pytest.mark.parametrize("label", ["cat", 0])
def test_unconditional_model_has_no_labels(label):
    with pytest.raises(ValueError, match="unconditional"):
        resolve_class_labels(label, {})
