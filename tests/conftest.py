"""What all tests share: one thread, no network, and where the real benchmark files are."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

# A machine that is busy is no failure; in CI each run tries the same cases, elsewhere new ones.
settings.register_profile("suite", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("suite")

os.environ.update(OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1")
os.environ.update(MLFLOW_DISABLE_TELEMETRY="true", DO_NOT_TRACK="true")
os.environ.pop("MLFLOW_TRACKING_URI", None)

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real benchmark files; tests that need it are skipped where it is not there."""
    folder = Path(os.environ.get("SSO_SHARED_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip("no real benchmark files; SSO_SHARED_DATA names their folder")
    return folder


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory) -> Path:
    """An untrained micro Qwen2 on disk."""
    from sso.settings import Backbone
    from sso.worlds.micro.models import build

    path = tmp_path_factory.mktemp("model") / "sft"
    for part in build(Backbone(architecture="qwen2"), seed=0):
        part.save_pretrained(path)
    return path
