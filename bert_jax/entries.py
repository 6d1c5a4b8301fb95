"""Groups of the config whose entries the user names, such as `config.tasks`: `options.NAMED` declares what is in one.

    add_entry(config, "tasks.sst2", task="classification", data={"train": "sst2/train.tsv"})

The order in which entries are given means nothing: a config sorts its keys, and so does everything that reads it.
"""

import copy

from ml_collections import ConfigDict

from bert_jax.config import UserError, check_option, flatten
from bert_jax.options import NAMED, default_entry, find_option, is_entry_name, nearest


def add_entry(config: ConfigDict, name: str, **values: object) -> None:
    """Adds the entry `name`, e.g. "corpora.de", with its options at these values and the others at their defaults.

    An option in a group is given as `data={"train": …}`. Raises UserError for an option that is not declared, naming
    the nearest, for a value that it does not accept, and for an entry that is there already.
    """
    group, _, entry = name.partition(".")
    if group not in NAMED or not is_entry_name(entry):
        raise UserError(
            f"{name!r} cannot be the name of an entry: it is {' or '.join(f'{known}.NAME' for known in NAMED)}, where "
            "NAME has letters, digits and _, a letter first"
        )
    if entry in config[group]:
        raise UserError(f"{name} is there already; give each entry a name of its own, or set its options one by one")
    is_users = "." in str(values.get("task", config.task))  # a class that may have options of its own
    given = flatten(values, f"{name}.")
    for key, value in given.items():
        if find_option(key):
            check_option(key, value)
        elif not is_users:
            raise UserError(f"{key} is not an option; the nearest is {nearest(key)}")
    with config.unlocked():
        config[group][entry] = default_entry(group)
    for key, value in given.items():
        set_option(config, key, value)


def set_option(config: ConfigDict, name: str, value: object) -> None:
    """Sets an option by its name, which must be known. An entry that is not there is added with its defaults."""
    *groups, key = name.split(".")
    place = config
    with config.unlocked():
        for depth, group in enumerate(groups):
            if group not in place:
                place[group] = default_entry(groups[0]) if depth == 1 and groups[0] in NAMED else {}
            place = place[group]
        place[key] = value


def entries(config: ConfigDict, group: str) -> dict[str, ConfigDict]:
    """Returns the entries of `config.corpora` or `config.tasks` by name, sorted by it."""
    return {name: config[group][name] for name in sorted(config[group])}


def of_task(config: ConfigDict, name: str) -> ConfigDict:
    """Returns the config that the entry `name` of `config.tasks` would have if it were the only task: what it sets for
    itself stands in place of the run's options. Raises UserError if there is none of this name."""
    if name not in config.tasks:
        known = ", ".join(entries(config, "tasks")) or "there are none"
        raise UserError(f"{name!r} is not one of the run's tasks ({known}); choose one of them")
    alone = copy.deepcopy(config)
    with alone.unlocked():
        alone.tasks = ConfigDict()
    own = flatten(config.tasks[name].to_dict())
    for key, value in own.items():
        if key == "task" or key not in NAMED["tasks"]:
            set_option(alone, key, value)
    return alone
