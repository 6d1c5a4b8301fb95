"""Experiment files: whatever is wrong with one is a line that begins with its name, and its line where there is one."""

import json
import os
import sys
from pathlib import Path

import pytest

from bert_jax import experiment
from bert_jax.config import UserError
from bert_jax.experiment import experiment_names, load_experiment, override, split_argument
from bert_jax.options import OPTIONS, default_config

START = "from bert_jax.options import default_config\n\ndef get_config():\n    c = default_config()\n"
BROKEN = {
    "syntax": ("def get_config(:\n", ":1: invalid syntax"),
    "indentation": ("def get_config():\nreturn 1\n", ":2: expected an indented block"),
    "a name": ("\nprint(nothing)\n", ":2: NameError: name 'nothing' is not defined"),
    "an import": ("import no_such_module_here\n", ":1: ModuleNotFoundError: No module named"),
    "its own exception": ("def get_config():\n    raise RuntimeError('two\\nlines')\n", ":2: RuntimeError: two lines"),
    "no message": ("def get_config():\n    assert False\n", ":2: AssertionError"),
    "an exit": ("import sys\nsys.exit(0)\n", ":2: the file ends the program (SystemExit)"),
    "not an Exception": ("class Odd(BaseException): pass\nraise Odd('x')\n", ":2: Odd: x"),
    "endless recursion": ("def f(): f()\nf()\n", ":1: RecursionError: maximum recursion depth"),
    "no get_config": ("config = 1\n", ": it defines no function get_config()"),
    "not a function": ("get_config = 1\n", ": it defines no function get_config()"),
    "empty": ("", ": it defines no function get_config()"),
    "too many parameters": (
        "def get_config(a, b):\n    return a\n",
        ": get_config() cannot be called without arguments",
    ),
    "None": ("def get_config():\n    pass\n", ": get_config() returns NoneType; it must return a ConfigDict"),
    "a dict": ("def get_config():\n    return {'train': 1}\n", ": get_config() returns dict"),
    "a coroutine": ("async def get_config():\n    return 1\n", ": get_config() returns coroutine"),
    "an unknown key": (
        START + "    c.train.stepz = 5\n    return c\n",
        ":5: stepz is not an option; the nearest is train.steps",
    ),
    "an unknown group": (START + "    c.trian = 5\n    return c\n", ":5: trian is not an option; the nearest is"),
    "reading one": (
        START + "    c.seed = c.train.stepz\n    return c\n",
        ":5: KeyError: 'stepz' Did you mean \"steps\"",
    ),
    "a wrong type": (START + "    c.train.steps = 'many'\n    return c\n", ":5: TypeError"),
    "out of range": (
        START + "    c.train.steps = 0\n    return c\n",
        ": train.steps is 0; it must be a whole number",
    ),
    "a pattern": (
        START + "    c.optimizer.freeze = '['\n    return c\n",
        ": optimizer.freeze is '[', which is not",
    ),
    "a missing group": (
        START + "    with c.unlocked():\n        del c['mesh']\n    return c\n",
        ": mesh.preset is missing; begin with",
    ),
    "a config of its own": (
        "from ml_collections import ConfigDict\ndef get_config():\n    return ConfigDict({'lr': 1})\n",
        ": task is missing; begin with",
    ),
    "an added key": (
        START + "    with c.unlocked():\n        c.train.stepz = 1\n    return c\n",
        ": train.stepz is not an option; the nearest is train.steps",
    ),
    "JSON": ('{"train": {"steps": 5}}', ": it defines no function"),
    "JSON of a config": (json.dumps(default_config().to_dict()), ":1: NameError: name 'false' is not defined"),
    "a NUL": ("a = 1\0\n", ": source code"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_file_is_one_line(kind, tmp_path):
    text, message = BROKEN[kind]
    file = tmp_path / "mine.py"
    file.write_text(text)
    before = set(sys.modules)
    with pytest.raises(UserError) as caught:
        load_experiment(str(file))
    line = str(caught.value)
    assert line.replace("source code cannot contain", "source code string cannot contain").startswith(
        f"{file}{message}"
    )
    assert "\n" not in line and "Traceback" not in line
    assert not [name for name in set(sys.modules) - before if "mine" in name]


def test_what_is_no_python_file(tmp_path):
    os.mkfifo(tmp_path / "pipe.py")
    (tmp_path / "binary.py").write_bytes(bytes(range(256)))
    (tmp_path / "large.py").write_bytes(b"#" * (1 << 21))
    (tmp_path / "latin.py").write_bytes(b"x = '\xe9'\n")
    for name, message in {
        "": "is a folder; give a file in it",
        "pipe.py": "is not a regular file",
        "binary.py": "binary.py",
        "large.py": "has 2097152 bytes; an experiment is a short Python file",
        "latin.py": "latin.py",
        "none.py": "does not exist; give one such as",
        "large.py/x.py": "does not exist",
        "a\0b.py": "",
        "x" * 5000: "",
    }.items():
        with pytest.raises(UserError) as caught:
            load_experiment(str(tmp_path / name))
        assert message in str(caught.value) and str(tmp_path) in str(caught.value)


def test_the_argument_behind_the_colon(tmp_path):
    file = tmp_path / "one:two.py"
    file.write_text(START + "    return c\n")
    assert split_argument(str(file)) == (file, None)
    assert load_experiment(str(file)).is_locked
    assert split_argument(f"{file}:three") == (file, "three")
    with pytest.raises(UserError, match=r"its get_config\(\) takes no argument; leave ':three' out"):
        load_experiment(f"{file}:three")
    for name in ("base:larg", "glue:rt", "classify:mulit", "ner:entity", "squad:v11"):
        file, _, argument = name.partition(":")
        with pytest.raises(UserError, match=r"it can be .*did you mean"):
            load_experiment(f"experiments/{file}.py:{argument}")


def test_overrides():
    config = default_config()
    given = override(
        config,
        [
            *(
                "--config.train.steps=7",
                "--config.data.packing",
                "--config.eval.every=None",
                "--config.mesh.data",
                "-1",
            ),
            *("--config.optimizer.learning_rate=3", "--config.data.labels=a=b,c", "--config.model.causal=true"),
        ],
    )
    assert given == {
        **{"train.steps": 7, "data.packing": True, "eval.every": None, "mesh.data": -1},
        **{"optimizer.learning_rate": 3.0, "data.labels": "a=b,c", "model.causal": True},
    }
    assert config.train.steps == 7 and config.eval.every is None and config.data.labels == "a=b,c"
    for word in ("--config.data.packing=maybe", "--config.train.steps=None", "--config.train.steps=", "--config.=1"):
        with pytest.raises(UserError, match=r"^--config\."):
            override(config, [word])


def test_options_of_ones_own_task_keep_their_type():
    config = default_config()
    config.task = "my_task.MyTask"
    with config.unlocked():
        config.data.scale, config.data.flag, config.data.name = 2, False, "x"
    assert override(config, ["--config.data.scale=3", "--config.data.flag=1", "--config.data.name=y"]) == {
        **{"data.scale": 3, "data.flag": True, "data.name": "y"}
    }
    for name, kind in {"scale": "a whole number", "flag": "True or False"}.items():
        with pytest.raises(UserError, match=rf"^--config.data.{name} is 'x'; it must be {kind}$"):
            override(config, [f"--config.data.{name}=x"])


@pytest.mark.parametrize("name", OPTIONS)
def test_no_value_from_the_command_line_is_a_traceback(name):
    for text in ("", "0", "-1", "nan", "inf", str(2**63), "1e400", "abc", "None", "(", "\0", "é", "\udcff", "9" * 5000):
        config = default_config()
        try:
            override(config, [f"--config.{name}={text}"])
        except UserError as error:
            assert name in str(error) and len(str(error)) < 250


def test_an_experiment_by_name(tmp_path, monkeypatch):
    installed = Path(experiment.__file__).parents[1] / "experiments"
    assert {"base", "tiny", "glue"} <= set(experiment_names()) and "study_data" not in experiment_names()
    monkeypatch.chdir(tmp_path)
    for text in ("glue:rte", "glue.py:rte", "experiments/glue.py:rte", "experiments/glue:rte"):
        assert split_argument(text) == (installed / "glue.py", "rte")
    assert split_argument("studies/layers") == (installed / "studies" / "layers.py", None)
    assert load_experiment("base:mini").model.size == "mini"
    with pytest.raises(UserError, match=r"config file bsae does not exist; did you mean base\?"):
        load_experiment("bsae")
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "glue.py").write_text(START + "    c.seed = 7\n    return c\n")
    assert load_experiment("glue").seed == 7  # one's own comes first,
    (tmp_path / "glue").write_text(START + "    c.seed = 8\n    return c\n")
    assert load_experiment("glue").seed == 8  # and a file of this name before all
