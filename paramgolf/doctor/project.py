"""Checks of the project's files, Git, DVC's configuration, and the servers that it names."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

from paramgolf.doctor.check import Check, fault, ok, warning
from paramgolf.doctor.reach import TRIED
from paramgolf.errors import ParamGolfError
from paramgolf.params import PARAMS_PATH, read_yaml
from paramgolf.recipes import check
from paramgolf.shell import output_of

Reachable = Callable[[str], bool]
PLUGINS = {"webdavs": "webdav"}  # DVC's package of a scheme is dvc-SCHEME but for these
BUILT_IN = ("http", "https", "file")


def check_params(root: Path) -> Check:
    """Check the parameters of the next run."""
    path = root / PARAMS_PATH
    try:
        check(read_yaml(path), where=path)
    except ParamGolfError as error:
        text, _, _ = str(error).partition("\n  what to do:")
        remedy = "mend it, or `paramgolf use sample`"
        return fault("params.yaml", " ".join(text.split()), remedy)
    return ok("params.yaml", "valid")


def check_git(root: Path) -> list[Check]:
    """Check Git: experiments are commits, so they need a repository and a name to commit by."""
    if output_of(["git", "--version"], root) is None:
        return [fault("Git", "not installed", "install git")]
    if output_of(["git", "rev-parse", "HEAD"], root) is None:
        text = "no repository with a commit here: `dvc exp` does not work"
        return [warning("Git", text, "git init && git add --all && git commit -m start")]
    keys = ("user.name", "user.email")
    missing = [key for key in keys if not (output_of(["git", "config", key], root) or "").strip()]
    if missing:
        text = f"{' and '.join(missing)} not set: `dvc exp run` does not work"
        return [warning("Git", text, f"git config --global {missing[0]} ...")]
    return [ok("Git", "repository and identity")]


def dvc_config(root: Path) -> dict[str, str] | None:
    """Return DVC's merged configuration, or None where dvc does not run here."""
    text = output_of([sys.executable, "-m", "dvc", "config", "--list"], root)
    if text is None:
        return None
    return dict(line.split("=", 1) for line in text.splitlines() if "=" in line)


def check_dvc(config: Mapping[str, str] | None) -> Check:
    """Check whether dvc runs in this folder."""
    if config is None:
        remedy = "run in the project's folder; install again with `make setup`"
        return fault("DVC", "`dvc config --list` does not run here", remedy)
    return ok("DVC", "runs")


def check_remote(config: Mapping[str, str], root: Path, reachable: Reachable) -> Check:
    """Check the default remote, where results are shared."""
    name = config.get("core.remote")
    if name is None:
        return ok("DVC remote", "none: results stay on this machine (`dvc remote add -d`)")
    url = config.get(f"remote.{name}.url", "")
    parts = urlsplit(url)
    shown = f"{name}, {parts.scheme}://{parts.hostname}" if parts.hostname else f"{name}, {url}"
    if package := missing_plugin(parts.scheme):
        remedy = f"pip install {package} (for ssh, WebDAV and S3: pip install -e .[remotes])"
        return warning("DVC remote", f"{shown}: {package} is not installed", remedy)
    if parts.scheme in TRIED:
        if reachable(url):
            return ok("DVC remote", f"{shown} answers")
        remedy = "check the network and the address: dvc remote list"
        return warning("DVC remote", f"{shown} does not answer", remedy)
    if parts.scheme:
        return ok("DVC remote", f"{shown}, not tried: `dvc status --cloud` does")
    if (root / ".dvc" / url).is_dir():
        return ok("DVC remote", f"{shown} is there")
    return warning("DVC remote", f"{shown} is not there", "mount it, or make the folder")


def missing_plugin(scheme: str) -> str | None:
    """Return the package that DVC lacks for remotes of a scheme, or None."""
    if not scheme or scheme in BUILT_IN:
        return None
    name = PLUGINS.get(scheme, scheme)
    return None if find_spec(f"dvc_{name}") else f"dvc-{name}"


def check_hub(endpoint: str, reachable: Reachable) -> Check:
    """Check whether the published tokens can be fetched."""
    host = urlsplit(endpoint).hostname
    if reachable(endpoint):
        return ok("hub", f"{host} answers")
    remedy = "check the network, or use data.source sample or files"
    return warning("hub", f"{host} does not answer: data.source hub cannot work", remedy)
