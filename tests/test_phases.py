"""Phases of a run: what the text means, and what is refused before any data is read."""

import pytest

from bert_jax.config import UserError, write_or_compare
from bert_jax.models.config import bert_config
from bert_jax.phases import check_phases, phase_configs, phase_ends
from experiments.base import get_config


@pytest.fixture
def config():
    config = get_config("tiny")
    config.train.update(steps=1000, batch_size=64)
    return config


def check(config, devices=1, *, is_possible=True):
    check_phases(config, bert_config(config.model, 1000), devices, is_possible=is_possible)


def test_a_phase_replaces_what_it_names_and_its_end_is_a_step(config):
    config.train.phases = "0.25: batch_size=16 sequence_length=32 mask_rate=0.3; 0.7005:;1: mask_rate=0.2;"
    check(config)
    (first, one), (second, two), (third, three) = phase_ends(config)
    assert (first, second, third) == (250, 700, 1000)  # of 700.5, the even number
    assert (one.train.batch_size, one.data.sequence_length, one.data.mask_rate) == (16, 32, 0.3)
    assert one.data.max_predictions_per_sequence == 10  # 20 × 32 / 128 × 0.3 / 0.15
    assert (two.train.batch_size, two.data.to_dict()) == (64, config.data.to_dict())
    assert three.data.max_predictions_per_sequence == 27  # 26.67, rounded up


def test_without_the_option_the_only_phase_is_the_config(config):
    [(share, one)] = phase_configs(config)
    assert share == 1 and one is config
    check(config, is_possible=False)


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("0.5: batch_size=8", "the last phase ends at 0.5"),
        ("0.5: ; 0.5: ; 1:", "phase 2 ends at 0.5 of train.steps, the one before at 0.5"),
        ("0.7: ; 0.2: ; 1:", "phase 2 ends at 0.2"),
        ("0: ; 1:", "phase 1 ends at 0"),
        ("0.5: ; 2:", "phase 2 ends at 2"),
        ("inf:", "phase 1 ends at inf"),
        ("nan: ; 1:", "phase 1 is 'nan:'; the form is"),
        ("half: ; 1:", "phase 1 is 'half:'"),
        ("0.5 batch_size=8; 1:", "phase 1 is '0.5 batch_size=8'"),
        ("0.5:;;1:", "phase 2 is ''"),
        ("1: batch=8", "phase 1 has 'batch=8'; the form is .*did you mean batch_size"),
        ("1: batch_size 8", "phase 1 has 'batch_size'"),
        ("1: batch_size=8 batch_size=16", "phase 1 names batch_size twice"),
        ("1: batch_size=many", "phase 1: train.batch_size is 'many'"),
        ("1: batch_size=0", "phase 1: train.batch_size is 0"),
        ("1: mask_rate=1.5", "phase 1: data.mask_rate is 1.5"),
        ("0.5: ; 1: batch_size=12", "phase 2: train.batch_size 12 is not a multiple of 4 devices × 2 micro-batches"),
        ("1: sequence_length=1024", "phase 1: data.sequence_length 1024 is over model.max_position_embeddings 512"),
        ("0.0001: ; 1:", "phase 1 has none of the 1000 steps"),
    ],
)
def test_what_is_no_phase_is_refused_in_one_line(config, text, wrong):
    config.train.update(phases=text, accumulation=2)
    with pytest.raises(UserError, match=f"^train.phases: {wrong}") as error:
        check(config, 4)
        phase_ends(config)
    assert "\n" not in str(error.value)


def test_phases_of_other_tasks_and_of_fixed_masks_are_refused(config):
    config.train.phases = "0.5: mask_rate=0.3; 1:"
    with pytest.raises(UserError, match="is for pretraining, not for task=pretraining"):
        check(config, is_possible=False)
    config.data.masking = "static"
    with pytest.raises(UserError, match=r"phase 1 has mask_rate=0.3, but data.masking=static"):
        check(config)
    config.train.phases = "0.5: batch_size=32; 1:"
    check(config)


def test_a_workdir_keeps_its_phases_and_their_steps(config, tmp_path):
    (tmp_path / "checkpoints" / "10").mkdir(parents=True)
    config.train.phases = "0.5: mask_rate=0.3; 1:"
    write_or_compare(config, tmp_path / "config.json")
    config.train.steps = 2000  # which would move the end of the first phase
    with pytest.raises(UserError, match=r"train\.steps was 1000, is 2000"):
        write_or_compare(config, tmp_path / "config.json")
    config.train.update(steps=1000, phases="")
    with pytest.raises(UserError, match=r"train\.phases was '0.5: mask_rate=0.3; 1:', is ''"):
        write_or_compare(config, tmp_path / "config.json")
