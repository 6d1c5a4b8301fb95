"""Phases of one run (`train.phases`): stretches of its steps with other batches, rows and shares of masks.

    0.25: batch_size=64 sequence_length=32 mask_rate=0.3; 1: batch_size=128 mask_rate=0.15

Each phase ends at a share of train.steps; what it does not name keeps the value of the config. The learning rate has
one schedule over all phases, and an evaluation always uses the config's own values.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

from ml_collections import ConfigDict

from bert_jax.config import UserError, check_batch
from bert_jax.models.config import BertConfig, check_length
from bert_jax.option import Value, can_be
from bert_jax.options import OPTIONS

# What a phase may name, and the option whose value it replaces.
KEYS = {"batch_size": "train.batch_size", "sequence_length": "data.sequence_length", "mask_rate": "data.mask_rate"}
_FORM = "the form is 'SHARE: KEY=VALUE KEY=VALUE; SHARE: …'"


class PhaseConfig(NamedTuple):
    """The config of a phase, as of a run of its own. `share` is that of train.steps at which the phase ends."""

    share: float
    config: ConfigDict


def phase_configs(config: ConfigDict) -> list[PhaseConfig]:
    """Returns the phases of a run in order; without train.phases the only one has the config itself.

    data.max_predictions_per_sequence follows a phase's rows and mask rate: it is multiplied by
    (sequence_length × mask_rate of the phase) / (sequence_length × mask_rate of the config) and rounded up. Raises
    UserError for a text that names no phases.
    """
    if not config.train.phases.strip():
        return [PhaseConfig(1.0, config)]
    found, before = [], 0.0
    for number, (share, values) in enumerate(_parsed(config.train.phases), 1):
        if not before < share <= 1:
            wrong = f"phase {number} ends at {share:g} of train.steps, the one before at {before:g}"
            raise UserError(f"train.phases: {wrong}; shares must rise from above 0 to 1")
        found.append(PhaseConfig(share, _with_values(config, values)))
        before = share
    if before != 1:
        raise UserError(f"train.phases: the last phase ends at {before:g} of train.steps; it must end at 1")
    return found


def phase_ends(config: ConfigDict) -> list[tuple[int, ConfigDict]]:
    """Returns for each phase the number of the step before which it ends, and its config. Raises UserError for a phase
    without a step; train.steps must be known."""
    ends, steps = [], config.train.steps
    for share, one in phase_configs(config):
        end = round(share * steps)
        if end == (ends[-1][0] if ends else 0):
            wrong = f"phase {len(ends) + 1} has none of the {steps} steps"
            raise UserError(f"train.phases: {wrong}; raise train.steps or move the shares apart")
        ends.append((end, one))
    return ends


def check_phases(config: ConfigDict, model: BertConfig, num_devices: int, *, is_possible: bool) -> None:
    """Raises UserError for phases that cannot be trained; `is_possible` says whether those of the task can."""
    phases = phase_configs(config)
    if phases[0].config is config:
        return
    if not is_possible:
        raise UserError(f"train.phases is for pretraining, not for task={config.task}; leave it empty")
    for number, (_, one) in enumerate(phases, 1):
        try:
            check_batch("train.batch_size", one.train.batch_size, num_devices, config)
            check_length(model, one.data.sequence_length)
        except UserError as error:
            raise UserError(f"train.phases: phase {number}: {error}") from None
        if config.data.masking == "static" and one.data.mask_rate != config.data.mask_rate:
            raise UserError(
                f"train.phases: phase {number} has mask_rate={one.data.mask_rate:g}, but data.masking=static fixes the "
                f"masks when the corpus is prepared ({config.data.mask_rate:g}); use data.masking=dynamic"
            )


def _parsed(text: str) -> Iterator[tuple[float, dict[str, Value]]]:
    """Yields the share and the values of each phase."""
    for number, part in enumerate(text.removesuffix(";").split(";"), 1):
        share, colon, rest = part.partition(":")
        try:
            end = float(share)
        except ValueError:
            end = math.nan
        if not colon or math.isnan(end):
            raise UserError(f"train.phases: phase {number} is {part.strip()!r}; {_FORM}")
        values: dict[str, Value] = {}
        for word in rest.split():
            key, equals, value = word.partition("=")
            if not equals or key not in KEYS:
                raise UserError(f"train.phases: phase {number} has {word!r}; {_FORM}, where KEY {can_be(key, KEYS)}")
            if key in values:
                raise UserError(f"train.phases: phase {number} names {key} twice; remove one")
            try:
                values[key] = OPTIONS[KEYS[key]].parse(value)
            except ValueError as problem:
                raise UserError(f"train.phases: phase {number}: {problem}") from None
        yield end, values


def _with_values(config: ConfigDict, values: dict[str, Value]) -> ConfigDict:
    one, data = config.copy_and_resolve_references(), config.data
    one.train.phases = ""
    for key, value in values.items():
        group, _, name = KEYS[key].partition(".")
        one[group][name] = value
    scale = (one.data.sequence_length * one.data.mask_rate) / (data.sequence_length * data.mask_rate)
    # Products of floats are rounded: 20 × 32 / 128 × 0.3 / 0.15 is 10, and not 11.
    one.data.max_predictions_per_sequence = math.ceil(round(data.max_predictions_per_sequence * scale, 6))
    return one
