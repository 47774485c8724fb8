"""Plans that leave out each part of a recipe in turn: what each was worth, all others in place.

A part is a group of parameters in which the recipe differs from the one that it is `from`, set back
to what they are there. Parameters that only work together are one part.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from paramgolf.errors import ParamGolfError
from paramgolf.experiments.lab.plan import STAGES, Goal, Plan, Variant, assignments, contents
from paramgolf.params import read_yaml
from paramgolf.recipes import RECIPES, as_text, compose, flatten

# what no plan varies: the text, the machine, and the rules
APART = ("data.", "runtime.", "verify.", "tokenizer.source", "tokenizer.path")
# what nothing refuses alone, and means nothing alone
TOGETHER = (
    ("train.sequence_length", "train.curriculum"),
    ("quantize.trellis", "package.codec", "quantize.fit_codec"),
    ("quantize.balance", "calibrate.sensitivity_sequences"),
    ("quantize.matrix_bits", "quantize.attention_clip", "quantize.mlp_clip"),
    ("quantize.embedding_bits", "quantize.embedding_clip"),
    ("model.heads", "model.kv_heads", "model.rope_dims"),
    *(
        tuple(f"{stage}.mixture.{key}" for key in ("kind", "contexts", "min_count", "weight"))
        for stage in ("eval_sliding", "eval_ttt")
    ),
)
# section: the first goal at which its parameters show; others show in training
SHOWN: dict[str, Goal] = {
    "calibrate": "packed",
    "quantize": "packed",
    "package": "packed",
    "eval_sliding": "scored",
    "eval_ttt": "adapted",
}


@dataclass(frozen=True, slots=True)
class Ablation:
    """A plan, and the parts that cannot be left out, with the reason."""

    plan: Plan
    impossible: Mapping[str, str]


def ablation(plan: Plan, recipe: str) -> Ablation:
    """Return a plan as the given one, whose variants are the recipe, whole and without each part.

    What the plan sets, whichever the recipe, is no part of it. A part that no recipe can be without
    alone takes those with it that the fault names; where that does not help, it is impossible.
    """
    base = parent_of(recipe)
    back = flatten(compose(base))
    own = flatten(compose(recipe))
    changed = [k for k in own if own[k] != back.get(k) and k in back and not k.startswith(APART)]
    fixed = _fixed(plan, (recipe, base))
    changed = [key for key in changed if key not in fixed]
    found = [*parts(changed)]
    if not found:
        raise ParamGolfError(f"recipe `{recipe}` has no part", where=RECIPES, found=f"from: {base}")
    whole = Variant(name=recipe, reason="whole")
    made = dataclasses.replace(
        plan, name=f"ablate-{recipe}", recipe=recipe, variants=(whole,), factors=(), runs=None
    )
    variants, impossible = {frozenset[str](): whole}, {}
    for part in found:
        variant = _without(made, part, changed, back)
        if isinstance(variant, Variant):
            variants.setdefault(frozenset(variant.changes), variant)
        else:
            impossible[", ".join(part)] = variant
    return Ablation(dataclasses.replace(made, variants=tuple(variants.values())), impossible)


def _fixed(plan: Plan, recipes: Sequence[str]) -> set[str]:
    """Return the parameters that a plan sets to the same in these recipes.

    Others it makes of what the recipe has: a curriculum, scaled to the plan's steps, is a part.
    """
    first, *others = (dict(assignments(plan, recipe)) for recipe in recipes)
    return {key for key, value in first.items() if all(o.get(key) == value for o in others)}


def parent_of(recipe: str) -> str:
    """Return the recipe that one is `from`."""
    compose(recipe)  # which says what is wrong with the name
    parent: str | None = read_yaml(RECIPES / f"{recipe}.yaml").get("from")
    if parent is None:
        fix = "name a recipe that is `from` another"
        raise ParamGolfError(f"recipe `{recipe}` is from no other", where=RECIPES, fix=fix)
    return parent


def parts(changed: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """Yield the groups of changed parameters, in their order."""
    groups = (next((group for group in TOGETHER if key in group), (key,)) for key in changed)
    for group in dict.fromkeys(groups):
        yield tuple(key for key in changed if key in group)


def _without(
    plan: Plan, part: Sequence[str], changed: Sequence[str], back: Mapping[str, Any]
) -> Variant | str:
    """Return a variant without a part, or why there is none."""
    keys = [*part]
    while True:
        changes = tuple(f"{key}={as_text(back[key])}" for key in keys)
        goal = max((SHOWN.get(key.partition(".")[0], "trained") for key in keys), key=_order)
        variant = Variant(
            name=f"without {part[0]}"[:80],
            reason=f"back to {', '.join(changes)}",
            changes=changes,
            goal=goal if _order(goal) > _order(plan.goal) else None,
        )
        try:
            contents(dataclasses.replace(plan, variants=(variant,)))
        except ParamGolfError as error:
            named = re.findall(r"`([\w.]+)`", str(error))
            more = [key for key in changed if key in named and key not in keys]
            if not more:
                return str(error)
            keys += more
        else:
            return variant


def _order(goal: Goal) -> int:
    return [*STAGES].index(goal)


def as_plan(plan: Plan) -> dict[str, Any]:
    """Return a plan as its file holds it, without what is left out."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: plain(v) for k, v in value.items() if v not in (None, (), "")}
        return [plain(one) for one in value] if isinstance(value, list | tuple) else value

    found: dict[str, Any] = plain(dataclasses.asdict(plan))
    return found
