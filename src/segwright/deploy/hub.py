"""Download the files of a model from the Hugging Face Hub; needs the extra `hub`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from segwright.core.errors import ConfigError, ModelError
from segwright.core.extensions.extras import imports_of
from segwright.core.text import printable

PREFIX: Final = "hf:"

_SOURCE: Final = re.compile(r"hf:(?P<repository>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?", re.ASCII)
_PATTERNS: Final = ("*.zip", "*.json", "*.md", "*.safetensors", "*.pth", "LICENSE*")
"""Files of models and packs; pictures and code of a repository are not downloaded."""


def download_from_hub(source: str) -> tuple[Path, str]:
    """Download a repository; return the folder with its files, and the source with the commit that was downloaded.

    Files are kept in the cache of huggingface_hub, so that an interrupted download continues. Its variables hold, such
    as `HF_TOKEN`, `HF_HOME` and `HF_HUB_OFFLINE`.

    Args:
        source: `hf:ORG/NAME`, or with a commit, branch or tag `hf:ORG/NAME@REVISION`.

    Raises:
        ConfigError: it is not written so, or huggingface_hub is not installed.
        ModelError: the download failed.
    """
    found = _SOURCE.fullmatch(source)
    if found is None:
        raise ConfigError(f"{printable(source)}: expected hf:ORG/NAME, or hf:ORG/NAME@REVISION")
    with imports_of("hub"):
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError
    repository, revision = found["repository"], found["revision"]
    try:
        folder = Path(snapshot_download(repository, revision=revision, allow_patterns=[*_PATTERNS]))
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise ModelError(
            f"{source}: cannot be downloaded ({printable(error)[:300]}); check name, revision and network, and for a "
            "private repository log in with: hf auth login"
        ) from error
    return folder, f"{PREFIX}{repository}@{folder.name}"
