"""Checkpoints of a run: which are kept, what is done about damaged ones, and who may write."""

import contextlib
import json
import resource
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bert_jax.config import UserError, write_or_compare
from bert_jax.data.tokenizers.wordpiece import make_wordpiece
from bert_jax.files import only_writer, write_atomically
from bert_jax.options import default_config
from bert_jax.sharding import make_mesh
from bert_jax.training.checkpoint import choose_checkpoint, read_checkpoint, scores, steps
from bert_jax.training.checkpoint_format import Trouble
from bert_jax.training.saving import Checkpoints, alone_in
from bert_jax.training.step import TrainState

TOKENIZER = make_wordpiece(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b"], "test", True, None, True)
MESH = make_mesh(default_config().mesh, jax.devices()[:1])


def state(step, names=("pooler/x",)):
    arrays = {name: jnp.full(4, step, jnp.float32) for name in names}
    return TrainState(jnp.asarray(step, jnp.int32), {"pooler/x": jnp.full(4, step, jnp.float32)}, {"mu": arrays})


def opened(folder, keep=2, mode="max"):
    config = default_config()
    config.checkpoint.update(keep=keep, best_metric="accuracy", best_mode=mode)
    return Checkpoints(folder / "checkpoints", config.checkpoint)


def save(folder, accuracies, **options):
    """Checkpoints of steps 1, 2, … with these accuracies (None: not evaluated)."""
    checkpoints = opened(folder, **options)
    with alone_in(folder), contextlib.closing(checkpoints):
        for step, accuracy in enumerate(accuracies, 1):
            run = {"config": default_config().to_dict(), "task": {}, "history": [], "data": {"position": step}}
            checkpoints.save(state(step), run, TOKENIZER, {} if accuracy is None else {"accuracy": accuracy})
        checkpoints.wait()
    return folder / "checkpoints"


def restored(folder, abstract=None):
    checkpoints = opened(folder)
    try:
        return checkpoints.restore_latest(abstract or jax.eval_shape(lambda: state(0)), MESH, TOKENIZER.content_hash)
    finally:
        checkpoints.close()


@pytest.mark.parametrize(
    ("accuracies", "mode", "kept"),
    [
        ([0.9, 0.5, 0.6, 0.7], "max", [1, 3, 4]),
        ([0.9, 0.5, 0.6, 0.7], "min", [2, 3, 4]),
        ([0.9, 0.5, 0.9, 0.7, None], "max", [3, 4, 5]),  # of two equals the later one is the best
        ([None, None, None], "max", [2, 3]),
        ([0.9, float("nan"), 0.5, 0.4], "max", [1, 3, 4]),
    ],
)
def test_the_last_two_and_the_best_are_kept(tmp_path, accuracies, mode, kept):
    folder = save(tmp_path, accuracies, mode=mode)
    assert steps(folder) == kept
    assert sorted(child.name for child in folder.iterdir()) == [str(step) for step in kept]  # nothing half deleted


def test_the_best_is_still_known_after_a_restart(tmp_path):
    save(tmp_path, [0.9, 0.5])
    checkpoints = opened(tmp_path)
    parameters, run = checkpoints.best(MESH)
    checkpoints.close()
    assert run["step"] == 1 and parameters["pooler/x"][0] == 1


def test_the_best_of_further_metrics_is_kept_and_chosen_for_its_task(tmp_path):
    config = default_config()
    config.checkpoint.update(keep=1, best_metric="mean", best_mode="max", also_best="a/f1, b/loss")
    checkpoints = Checkpoints(tmp_path / "checkpoints", config.checkpoint)
    values = [(0.1, 0.9, 0.7), (0.8, 0.5, 0.6), (0.5, 0.2, 0.3), (0.4, 0.3, 0.4), (0.4, 0.1, 0.5)]
    with alone_in(tmp_path), contextlib.closing(checkpoints):
        for step, (mean, f1, loss) in enumerate(values, 1):
            run = {"config": config.to_dict(), "task": {}, "history": [], "data": {}}
            checkpoints.save(state(step), run, TOKENIZER, {"mean": mean, "a/f1": f1, "b/loss": loss, "other": 1.0})
        checkpoints.wait()
    assert steps(tmp_path / "checkpoints") == [1, 2, 3, 5]

    def chosen(*which):
        return choose_checkpoint(str(tmp_path), *which).name

    assert [chosen("best", name) for name in ("", "a", "b", "c")] == ["2", "1", "3", "2"]
    assert [chosen(which) for which in ("best:a/f1", "best:b/loss", "best:mean", "newest")] == ["1", "3", "2", "5"]
    with pytest.raises(UserError, match="kept the best checkpoint by mean, a/f1, b/loss, not by 'f1'"):
        chosen("best:f1")


def test_a_restored_state_lies_as_a_fresh_one(tmp_path):
    """Else the step would be compiled once more after every interruption."""
    save(tmp_path, [0.5])
    assert all(x.sharding == MESH.sharding() and x.committed for x in jax.tree.leaves(restored(tmp_path)[0]))


@pytest.mark.parametrize("item", ["run", "tokenizer"])
def test_a_bit_flip_in_an_item_falls_back_to_the_checkpoint_before(tmp_path, item):
    folder = save(tmp_path, [0.1, 0.2])
    file = folder / "2" / item / "metadata"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    assert restored(tmp_path)[1]["data"] == {"position": 1}
    assert [child.name for child in (tmp_path / "damaged").iterdir()] == ["2"]


def test_an_unreadable_score_only_loses_the_score(tmp_path):
    folder = save(tmp_path, [0.1, 0.2])
    (folder / "2" / "run" / "metadata").write_bytes(b"{")
    assert scores(folder, "accuracy") == {1: 0.1}


def test_no_fresh_start_beside_damaged_checkpoints(tmp_path):
    folder = save(tmp_path, [0.1, 0.2])
    for step in (1, 2):
        (folder / str(step) / "run" / "metadata").unlink()
    for _ in range(2):  # the second start finds no checkpoint at all, and must not begin at step 0 either
        with pytest.raises(UserError, match=r"all 2 checkpoints of .* are damaged and lie in .*damaged; choose"):
            restored(tmp_path)
    assert sorted(child.name for child in (tmp_path / "damaged").iterdir()) == ["1", "2"]


def test_trouble_moves_nothing(tmp_path, monkeypatch):
    folder = save(tmp_path, [0.1, 0.2])

    def exhausted(*_, **__):
        raise MemoryError

    monkeypatch.setattr("orbax.checkpoint.PyTreeCheckpointHandler.restore", exhausted)
    with pytest.raises(Trouble, match="2 cannot be read now"):
        restored(tmp_path)
    assert steps(folder) == [1, 2] and not (tmp_path / "damaged").exists()


def test_another_optimizer_is_named_and_no_damage(tmp_path):
    folder = save(tmp_path, [0.1])
    with pytest.raises(UserError, match=r"another optimizer .*lacks \['mu'\]\['pooler/y'\].*optimizer.name=adamw"):
        restored(tmp_path, jax.eval_shape(lambda: state(0, ("pooler/x", "pooler/y"))))
    with pytest.raises(UserError, match=r"another optimizer .*has \['mu'\]\['pooler/x'\] besides"):
        restored(tmp_path, jax.eval_shape(lambda: state(0, ())))
    assert steps(folder) == [1] and not (tmp_path / "damaged").exists()


def test_another_model_is_named_and_no_damage(tmp_path):
    save(tmp_path, [0.1])
    arrays = {"pooler/x": jax.ShapeDtypeStruct((5,), jnp.float32)}
    larger = TrainState(jax.ShapeDtypeStruct((), jnp.int32), arrays, {"mu": arrays})
    with pytest.raises(UserError, match=r"another model .*pooler/x: \(4,\) there, \(5,\) here"):
        restored(tmp_path, larger)
    assert not (tmp_path / "damaged").exists()


def test_a_checkpoint_that_is_not_finished_is_removed_and_not_taken(tmp_path):
    folder = save(tmp_path, [0.1])
    (folder / "2.orbax-checkpoint-tmp").mkdir()
    (folder / ".deleting-0").mkdir()
    assert steps(folder) == [1]
    assert restored(tmp_path)[1]["step"] == 1
    assert [child.name for child in folder.iterdir()] == ["1"]


def test_a_saved_run_says_what_wrote_it(tmp_path):
    folder = save(tmp_path, [0.25])
    run = read_checkpoint(folder / "1").run
    assert run["format"] == 2 and run["score"] == {"accuracy": 0.25} and isinstance(run["written_by"], str)
    assert run["checksums"].keys() == {"parameters", "optimizer", "run", "tokenizer"}


def test_a_second_process_is_told_who_holds_the_workdir(tmp_path):
    code = f"""
import pathlib, time
from bert_jax.files import only_writer
with only_writer(pathlib.Path({str(tmp_path)!r})):
    print("held", flush=True)
    time.sleep(60)
"""
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    try:
        assert holder.stdout.readline() == b"held\n"
        message = rf"is in use by process {holder.pid} on .* since 2.*; wait for its end, stop it, or choose another"
        with pytest.raises(UserError, match=message), alone_in(tmp_path):
            pass
    finally:
        holder.kill()
        holder.communicate()
    with alone_in(tmp_path):  # the lock died with its holder
        assert json.loads((tmp_path / "lock").read_text())["host"]


def test_a_lock_without_content_still_holds(tmp_path):
    with only_writer(tmp_path):
        (tmp_path / "lock").write_bytes(b"\xff")
        with pytest.raises(BlockingIOError, match="in use by another process"), only_writer(tmp_path):
            pass


def test_a_lock_that_is_a_link_does_not_empty_its_target(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    (tmp_path / "lock").symlink_to("mine.txt")
    with pytest.raises(OSError, match="symbolic links"), only_writer(tmp_path):
        pass
    assert (tmp_path / "mine.txt").read_text() == "mine"


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    file, link = tmp_path / "a.json", tmp_path / "link.json"
    write_atomically(file, "old")
    link.symlink_to(file)
    write_atomically(link, "new")
    assert link.is_symlink() and file.read_text() == "new"
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(OSError, match="Too many levels of symbolic links"):
        write_atomically(tmp_path / "loop", "new")
    (tmp_path / "loop").unlink()

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomically(file, "newer")
    assert file.read_text() == "new" and len(list(tmp_path.iterdir())) == 2


def test_a_workdir_without_a_checkpoint_may_start_again_with_other_options(tmp_path):
    config = default_config()
    write_or_compare(config, tmp_path / "config.json")
    config.optimizer.learning_rate = 0.5
    write_or_compare(config, tmp_path / "config.json")
    assert json.loads((tmp_path / "config.json").read_text())["optimizer"]["learning_rate"] == 0.5
    save(tmp_path, [0.1])
    config.optimizer.learning_rate = 0.25
    with pytest.raises(UserError, match=r"learning_rate was 0.5, is 0.25\); restore these keys, or choose another"):
        write_or_compare(config, tmp_path / "config.json")


def test_checkpoints_of_the_same_step_are_written_once(tmp_path):
    folder = save(tmp_path, [0.1])
    before = (folder / "1" / "run" / "metadata").stat().st_mtime_ns
    time.sleep(0.01)
    save(tmp_path, [0.9])
    assert (folder / "1" / "run" / "metadata").stat().st_mtime_ns == before
    np.testing.assert_array_equal(read_checkpoint(folder / "1").parameters["pooler/x"], np.ones(4))


def test_a_temporary_checkpoint_is_resumed_from_and_takes_nobodys_place(tmp_path):
    checkpoints, kept = opened(tmp_path), []
    with alone_in(tmp_path), contextlib.closing(checkpoints):
        for step in range(1, 8):
            run = {"config": default_config().to_dict(), "task": {}, "history": [], "data": {"position": step}}
            is_planned = step in (1, 2, 5)
            checkpoints.save(state(step), run, TOKENIZER, {"accuracy": step / 10}, temporary=not is_planned)
            checkpoints.wait()
            kept.append(steps(tmp_path / "checkpoints"))
    assert kept == [[1], [1, 2], [1, 2, 3], [1, 2, 4], [2, 5], [2, 5, 6], [2, 5, 7]]
    assert restored(tmp_path)[1]["data"] == {"position": 7} and restored(tmp_path)[1]["temporary"]
    checkpoints = opened(tmp_path)  # a new process knows them too
    assert checkpoints.best(MESH)[1]["step"] == 5 and checkpoints.temporary == {7}
    with alone_in(tmp_path), contextlib.closing(checkpoints):
        run = {"config": default_config().to_dict(), "task": {}, "history": [], "data": {"position": 8}}
        checkpoints.save(state(8), run, TOKENIZER, {"accuracy": 0.1})
        checkpoints.wait()
    assert steps(tmp_path / "checkpoints") == [5, 8]


def test_a_save_is_due_by_time(tmp_path, monkeypatch):
    config, now = default_config(), [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    config.checkpoint.minutes = 5.0
    checkpoints = Checkpoints(tmp_path / "checkpoints", config.checkpoint)
    due = []
    with alone_in(tmp_path), contextlib.closing(checkpoints):
        for step in range(1, 6):
            now[0] += 200
            due.append(checkpoints.are_due_by_time(step, config.train))
            if due[-1]:
                run = {"config": config.to_dict(), "task": {}, "history": []}
                checkpoints.save(state(step), run, TOKENIZER, {}, temporary=True)
    assert due == [False, True, False, True, False]
    never = Checkpoints(tmp_path / "checkpoints", default_config().checkpoint)
    assert not never.are_due_by_time(9, config.train)
    never.close()


def test_a_save_that_fails_half_way_is_no_checkpoint(tmp_path):
    """The kernel refuses to let the files of the arrays grow: part of the save is on disk then."""
    folder = save(tmp_path, [0.1])
    checkpoints = opened(tmp_path)
    arrays = {"pooler/x": jnp.arange(200_000, dtype=jnp.float32)}
    large = TrainState(jnp.asarray(2, jnp.int32), arrays, {"mu": arrays})
    run = {"config": default_config().to_dict(), "task": {}, "history": [], "data": {"position": 2}}
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    with alone_in(tmp_path), contextlib.closing(checkpoints):
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, usual[1]))
        try:
            with pytest.raises(UserError, match=r"cannot write .* \(File too large\); the checkpoint of step 1 is"):
                checkpoints.save(large, run, TOKENIZER, {})
                checkpoints.wait()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, usual)
        assert checkpoints.latest == 1 and steps(folder) == [1]
    for _ in range(100):  # in this process threads of the failed save may write a while longer
        assert restored(tmp_path)[1]["data"] == {"position": 1}
        if [child.name for child in folder.iterdir()] == ["1"]:
            return
        time.sleep(0.1)
    pytest.fail("what was half written is still there")
