"""What a run sets up before it begins."""

import os
import subprocess
import sys

ASK = """
import sys, jax
from pathlib import Path
from bert_jax.start import keep_programs
keep_programs(Path(sys.argv[1]))
print(jax.config.jax_compilation_cache_dir, jax.config.jax_persistent_cache_min_compile_time_secs)
"""


def test_programs_are_kept_beside_the_run_small_ones_too_unless_the_user_says_otherwise(tmp_path):
    names = ("JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS")
    mine = {name: value for name, value in os.environ.items() if name not in names}

    def asked(environment):
        command = [sys.executable, "-c", ASK, str(tmp_path / "runs" / "one")]
        return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout.split()

    assert asked(mine) == [str(tmp_path / "runs" / ".compiled"), "0.02"]
    assert asked(mine | dict(zip(names, ("/elsewhere", "3.0"), strict=True))) == ["/elsewhere", "3.0"]
