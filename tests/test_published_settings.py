"""Settings of recipes are the published ones, but for what recipes/differences.yaml names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from published_case import ROOT, SYSTEMS, facts
from recipe_case import recipe

from paramgolf.model.shapes import GATE_CHANNELS, count
from paramgolf.params import read_yaml
from paramgolf.recipes import Params, build, check, compose, differences, flatten

RECIPES = ROOT / "recipes"
Read = Callable[[Params], Any]


def repeated(p: Params) -> list[int]:
    """Layers that the last order runs more than once."""
    order = p.model.orders[-1]
    return sorted({layer for layer in order if order.count(layer) > 1})


def adapts(p: Params) -> bool:
    return p.eval_ttt.mode != "none"


def stride(p: Params) -> int:
    """The stride of sliding windows, 0 where they do not overlap: plain evaluation."""
    window = p.eval_sliding.window
    return p.eval_sliding.stride if p.eval_sliding.stride < window else 0


# What our parameters say of a published setting. Statements in words are true where ours holds too.
NETWORK: dict[str, Read] = {
    "vocabulary": lambda p: p.tokenizer.vocab_size,
    "layers": lambda p: p.model.layers,
    "width": lambda p: p.model.width,
    "heads": lambda p: p.model.heads,
    "kv_heads": lambda p: p.model.kv_heads,
    "mlp_multiple": lambda p: p.model.mlp_hidden / p.model.width,
    "tied_embedding": lambda p: True,
    "rope_dims": lambda p: p.model.rope_dims,
    "rope_base": lambda p: p.model.rope_base,
    "rope_trained_length": lambda p: p.model.rope_trained_length,
    "q_gain_init": lambda p: p.model.q_gain,
    "softcap": lambda p: p.model.softcap,
    "asymmetric_softcap": lambda p: p.model.asymmetric_softcap,
    "xsa_layers": lambda p: min(p.model.xsa_layers, p.model.layers),
    "layer_scale": lambda p: p.model.layer_scale,
    "mlp_slope": lambda p: p.model.mlp_slope,
    "bigram_buckets": lambda p: p.model.bigram_buckets,
    "bigram_dim": lambda p: p.model.bigram_dim if p.model.bigram_buckets else 0,
    "value_embedding_dim": lambda p: p.model.value_embedding_dim,
    "value_embedding_layers": lambda p: [*p.model.value_embedding_layers],
    "parallel_start": lambda p: p.model.parallel_start,
    "order": lambda p: [*p.model.orders[0]],
    "recurrence_order": lambda p: [*p.model.orders[-1]],
    "recurrence_start": lambda p: p.model.recurrence[0].at,
    "recurrence_layers": repeated,
    "recurrence_first_layer": lambda p: repeated(p)[0],
    "recurrence_last_layer": lambda p: repeated(p)[-1],
    "recurrence_extra_passes": lambda p: p.model.orders[-1].count(repeated(p)[0]) - 1,
    "untied_repeat_mlps": lambda p: "full" if p.model.untied_repeats else "none",
    "first_layer_without_attention": lambda p: not p.model.first_attention,
    "gated_skips": lambda p: p.model.skips == "gated",
    "skip_rows": lambda p: p.model.skip_count,
    "final_lane": lambda p: "mean" if p.model.parallel == "lanes" else "merge",
    "smear": lambda p: p.model.smear != "none",
    "gate_channels": lambda p: GATE_CHANNELS,
    "head_gate": lambda p: p.model.head_gate == "sparse",
    "head_gate_scale": lambda p: p.model.head_gate_scale,
    "recur_scale": lambda p: p.model.repeat_step,
    "smear_mask_at_bos": lambda p: p.model.bos_mask,
    "parameters": lambda p: count(p.model, p.tokenizer.vocab_size),
}
TRAINING: dict[str, Read] = {
    "batch": lambda p: p.train.batch_tokens,
    "sequence": lambda p: p.train.sequence_length,
    "clock": lambda p: p.train.budget_seconds,
    "iterations_limit": lambda p: p.train.steps,
    "warmup_steps": lambda p: 0,
    "warmdown": lambda p: p.train.warmdown,
    "warmdown_fraction": lambda p: p.train.warmdown,
    "least_multiplier": lambda p: p.train.min_lr,
    "token_rate": lambda p: p.train.token_lr,
    "matrix_rate": lambda p: p.train.matrix_lr,
    "matrix_rate_early": lambda p: None,
    "matrix_rate_late": lambda p: None,
    "scalar_rate": lambda p: p.train.scalar_lr,
    "muon_decay": lambda p: p.train.matrix_decay,
    "token_decay": lambda p: p.train.token_decay,
    "scalar_decay": lambda p: p.train.scalar_decay,
    "muon_momentum": lambda p: p.train.muon_momentum,
    "muon_momentum_start": lambda p: p.train.muon_momentum_start,
    "muon_momentum_ramp": lambda p: p.train.muon_momentum_steps,
    "newton_schulz_steps": lambda p: p.train.muon_iterations,
    "orthogonalising_steps": lambda p: p.train.muon_iterations,
    "row_normalised_muon": lambda p: p.train.muon_normalise_rows,
    "muon_row_normalise": lambda p: p.train.muon_normalise_rows,
    "muon_row_floor": lambda p: p.train.muon_row_floor,
    "adam_beta1": lambda p: p.train.adam_beta1,
    "adam_beta2": lambda p: p.train.adam_beta2,
    "adam_eps": lambda p: p.train.adam_eps,
    "grad_clip": lambda p: p.train.clip_norm,
    "average_decay": lambda p: p.train.ema_decay,
    "average": lambda p: p.train.average == "ema",
    "qat_below": lambda p: p.train.qat_below,
    "gptq_reserve_ms": lambda p: 1000 * p.train.reserve_seconds,
    "gptq_reserve": lambda p: p.train.reserve_seconds,
    "reserve": lambda p: p.train.reserve_seconds,
}
QUANTIZING: dict[str, Read] = {
    "calibration_sequences": lambda p: p.calibrate.sequences,
    "calibration_batches": lambda p: p.calibrate.sequences / p.calibrate.batch_sequences,
    "generation_temperature": lambda p: p.calibrate.temperature,
    "generation_batch": lambda p: p.calibrate.batch_sequences,
    "int6_matrices": lambda p: p.quantize.high_bits_matrices,
    "bits": lambda p: p.quantize.matrix_bits,
    "matrix_bits": lambda p: p.quantize.matrix_bits,
    "mlp_bits": lambda p: p.quantize.mlp_bits or p.quantize.matrix_bits,
    "attention_bits": lambda p: p.quantize.matrix_bits,
    "embedding_bits": lambda p: p.quantize.embedding_bits or 16,
    "bigram_bits": lambda p: p.quantize.table_bits,
    "pruned_share": lambda p: 0.0,
    "embedding_clip": lambda p: p.quantize.embedding_clip,
    "matrix_clip": lambda p: max(p.quantize.attention_clip, p.quantize.mlp_clip),
    "attention_clip": lambda p: p.quantize.attention_clip,
    "mlp_clip": lambda p: p.quantize.mlp_clip,
    "grid_deviations": lambda p: max(p.quantize.attention_clip, p.quantize.mlp_clip),
    "grid_deviations_embedding": lambda p: p.quantize.embedding_clip,
    "hessian_damping": lambda p: p.quantize.damping,
    "damping": lambda p: p.quantize.damping,
    "block_columns": lambda p: p.quantize.block_columns,
    "head_gate_int8": lambda p: p.quantize.gate_bits == 8,
    "corrections": lambda p: p.quantize.low_rank_matrices,
    "correction_rank": lambda p: p.quantize.low_rank,
    "correction_group": lambda p: p.quantize.low_rank_group,
    "compressor": lambda p: p.package.codec,
    "size_limit": lambda p: p.package.limit_bytes,
}
EVALUATION: dict[str, Read] = {
    "eval_window": lambda p: p.eval_sliding.window,
    "eval_stride": stride,
    "eval_batch": lambda p: p.eval_sliding.batch_windows,
    "ttt": adapts,
    "ttt_rate": lambda p: (
        p.eval_ttt.adapter.lr if p.eval_ttt.mode == "lora_stream" else p.eval_ttt.lr
    ),
    "ttt_rank": lambda p: p.eval_ttt.adapter.rank,
    "ttt_reset": lambda p: p.eval_ttt.stream.reset_batches,
    "ttt_temperature": lambda p: p.eval_ttt.stream.temperature,
    "ttt_epochs": lambda p: p.eval_ttt.epochs,
    "ttt_batch": lambda p: p.eval_ttt.batch_sequences,
    "ttt_chunk": lambda p: p.eval_ttt.chunk_tokens,
    "ttt_momentum": lambda p: p.eval_ttt.momentum,
    "ttt_clip": lambda p: p.eval_ttt.clip_norm,
    "ttt_frozen_layers": lambda p: 0,
    "adapter_betas": lambda p: [p.eval_ttt.adapter.beta1, p.eval_ttt.adapter.beta2],
    "adapter_eps": lambda p: p.eval_ttt.adapter.eps,
    "adapter_decay": lambda p: p.eval_ttt.adapter.decay,
    "adapter_a_std": lambda p: p.eval_ttt.adapter.init_std,
    "adapter_targets": lambda p: [*p.eval_ttt.adapter.targets],
    "lora_rank": lambda p: p.eval_ttt.adapter.rank,
    "lora_alpha": lambda p: p.eval_ttt.adapter.alpha,
    "lora_rate": lambda p: p.eval_ttt.adapter.lr,
    "lora_beta1": lambda p: p.eval_ttt.adapter.beta1,
    "lora_beta2": lambda p: p.eval_ttt.adapter.beta2,
    "lora_eps": lambda p: p.eval_ttt.adapter.eps,
    "lora_decay": lambda p: p.eval_ttt.adapter.decay,
    "lora_chunk": lambda p: p.eval_ttt.documents.chunk_tokens,
    "lora_window": lambda p: p.eval_ttt.window,
    "lora_batch": lambda p: p.eval_ttt.documents.batch_documents,
    "lora_steps": lambda p: 1,
    "lora_targets": lambda p: [*p.eval_ttt.adapter.targets],
    "lora_on_k": lambda p: "k" in p.eval_ttt.adapter.targets,
    "lora_on_o": lambda p: "o" in p.eval_ttt.adapter.targets,
    "lora_on_mlp": lambda p: "mlp" in p.eval_ttt.adapter.targets,
    "lora_warm_a": lambda p: p.eval_ttt.documents.warm_a,
    "phases": lambda p: p.eval_ttt.documents.phases,
    "phase_documents": lambda p: p.eval_ttt.documents.prefix_documents,
    "phase_documents_by_phase": lambda p: [
        p.eval_ttt.documents.prefix_documents * (i + 1) // p.eval_ttt.documents.phases
        for i in range(p.eval_ttt.documents.phases)
    ],
    "phase_rate": lambda p: p.eval_ttt.lr,
    "phase_momentum": lambda p: p.eval_ttt.momentum,
    "phase_epochs": lambda p: p.eval_ttt.epochs,
    "phase_chunk": lambda p: p.eval_ttt.chunk_tokens,
    "phase_batch": lambda p: p.eval_ttt.batch_sequences,
    "phase_clip": lambda p: p.eval_ttt.clip_norm,
    "phase_warmup_chunks": lambda p: 0,
    "ngram_order": lambda p: max(p.eval_ttt.mixture.contexts) + 1,
    "ngram_alpha": lambda p: p.eval_ttt.mixture.weight,
    "ngram_training_tokens": lambda p: p.eval_ttt.mixture.primer_tokens,
    "tilt": lambda p: p.eval_ttt.mixture.kind == "tilt",
    "tilt_order": lambda p: p.eval_ttt.mixture.contexts[0] + 1,
    "tilt_threshold": lambda p: p.eval_ttt.mixture.min_share,
    "tilt_boost": lambda p: p.eval_ttt.mixture.beta,
}
STATEMENTS: dict[str, Read] = {
    "least_step": lambda p: p.quantize.least_reach == 1.0,
    "swa": lambda p: p.train.average == "ema",
    "ngram": lambda p: p.eval_ttt.mixture.kind == "none",
    "column_order": lambda p: p.quantize.act_order,
    "lora_a_init": lambda p: True,
    "loader": lambda p: p.train.loader == "documents",
    "tilt_hints": lambda p: False,
}
READ = NETWORK | TRAINING | QUANTIZING | EVALUATION
# facts of the published runs; recipes/records.yaml holds some of them
FACTS = ("seed", "seeds", "steps", "processes", "artifact_bytes")
# held by tests of what they do: tests/model/test_published_networks.py and others
ELSEWHERE = ("embedding_init_std", "value_residual_init", "polynomial")


def differing(name: str, params: Params) -> set[str]:
    """The published settings of a system that our parameters do not have."""
    found = set()
    for setting, fact in facts(name, "settings").items():
        if setting in FACTS or setting in ELSEWHERE or (ignored(name, setting, params)):
            continue
        if setting in STATEMENTS:
            same = STATEMENTS[setting](params)
        else:
            same = READ[setting](params) == fact["value"]
        found |= set() if same else {setting}
    return found


def ignored(name: str, setting: str, params: Params) -> bool:
    """Tell whether a setting is one of adaptation that neither the system nor the recipe does."""
    return setting.startswith("ttt_") and not (
        adapts(params) or facts(name, "settings")["ttt"]["value"]
    )


def named(name: str) -> set[str]:
    """The settings of a system that recipes/differences.yaml says something about."""
    return {setting for entry in differences(name, RECIPES) for setting in entry.settings}


@pytest.mark.parametrize("name", SYSTEMS)
def test_every_setting_that_differs_is_named_and_every_one_named_differs(name):
    known = named(name) & facts(name, "settings").keys()
    assert differing(name, recipe(name)) == known


@pytest.mark.parametrize("name", SYSTEMS)
def test_what_can_be_restored_is_restored(name):
    params = check(build(name, [("fidelity", "published")], RECIPES), where=name)
    entries = differences(name, RECIPES)
    restored = {setting for entry in entries if entry.restore for setting in entry.settings}
    assert not differing(name, params) & restored


def test_differences_name_published_systems_settings_and_parameters():
    parameters, settings = flatten(compose("base", RECIPES)), {}
    for name in SYSTEMS:
        settings |= facts(name, "settings")
    ours = {name: flatten(compose(name, RECIPES)) for name in SYSTEMS}
    for entry in differences(folder=RECIPES):
        assert set(entry.recipes) <= set(SYSTEMS)
        assert set(entry.settings) <= settings.keys()
        assert entry.restore.keys() <= parameters.keys()
        for name in entry.recipes:
            assert all(ours[name][key] != value for key, value in entry.restore.items()), entry


@pytest.mark.parametrize("name", SYSTEMS)
def test_records_agree_with_the_settings_of_the_published_runs(name):
    record = read_yaml(RECIPES / "records.yaml")[name]
    known = {key: fact["value"] for key, fact in facts(name, "settings").items()}
    training = record["training"]
    steps = known["steps"] if isinstance(known["steps"], int) else known["steps"]["42"]
    assert (training["steps"], training["batch_tokens"]) == (steps, known["batch"])
    assert (training["gpus"], record["parameters"]) == (known["processes"], known["parameters"])
    if "seeds" in known:
        assert record["seeds"] == {int(seed): score for seed, score in known["seeds"].items()}
    if "artifact_bytes" in known:
        assert record["artifact_bytes"] == max(known["artifact_bytes"].values())
