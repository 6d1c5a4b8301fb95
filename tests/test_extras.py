"""The command that installs an extra is right wherever the package runs from."""

import configparser
import re

from bert_jax import extras
from tests.test_architecture import MODULES, ROOT


def test_the_command_names_the_checkout_or_the_package(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert extras.install("serve") == "pip install -e '.[serve]'"
    monkeypatch.chdir(tmp_path)
    assert extras.install("serve") == f"pip install -e '{ROOT}[serve]'"
    monkeypatch.setattr(extras, "_ROOT", tmp_path)
    assert extras.install("serve") == "pip install 'bert_jax[serve]'"


def test_every_extra_that_a_message_names_is_one_of_setup_cfg():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    known = {*setup["options.extras_require"]}
    texts = {name: path.read_text("utf-8") for name, path in MODULES.items()}
    named = {extra for text in texts.values() for extra in re.findall(r"\binstall\(['\"](\w+)['\"]\)", text)}
    assert len(named) >= 8 and named <= known
    assert {name for name, text in texts.items() if "pip install -e" in text} == {"bert_jax.extras"}
