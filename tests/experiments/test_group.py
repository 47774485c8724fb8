"""Groups of runs that differ by nothing but the seed, and their labels."""

from __future__ import annotations

import re

from paramgolf.experiments.group import grouped
from paramgolf.experiments.read import Experiment


def test_runtime_and_verify_make_no_group_of_their_own():
    runs = [
        Experiment("a", {"train.seed": 1, "runtime.device": "cpu"}, {"x.y": 1}),
        Experiment("b", {"train.seed": 2, "runtime.device": "cuda"}, {"x.y": 2}),
        Experiment("c", {"train.seed": 2, "verify.enforce": False}, {"x.y": 3}),
    ]
    (group,) = grouped(runs)
    assert group.label == "all runs"
    assert group.values("x.y") == [1, 2, 3]


def test_labels_are_short_and_name_absent_parameters():
    many = {f"model.key{i}": i for i in range(9)}
    runs = [Experiment("a", {"model.order": [*range(40)]}, {}), Experiment("b", many, {})]
    first, second = (group.label for group in grouped(runs))
    assert first.startswith("model.order=[0, 1, 2, 3, 4, 5, 6,...,")
    assert re.search(r"model.order=\(absent\).* and \d more", second)


def test_labels_are_distinct_where_short_ones_would_be_alike():
    order = [*range(40)]
    many = {f"model.key{i}": i for i in range(9)} | {"model.order": order}
    changes = [{}, {"model.key8": 0}, {"model.order": order[::-1]}, {"model.order": [*order, 40]}]
    runs = [Experiment(str(i), many | change, {}) for i, change in enumerate(changes)]
    runs.append(Experiment("other", {f"model.key{i}": -1 for i in range(9)}, {}))
    labels = [group.label for group in grouped(runs)]
    assert len(set(labels)) == len(runs)
    assert labels[1].endswith(" more, model.key8=0, model.order=" + str(order))
