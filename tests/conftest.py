"""What all tests share: one thread, no network, and where the real benchmark files are."""

import os
from collections.abc import Iterator
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


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Tests marked `gpu(cards=1)` skip themselves where there are fewer. Under SSO_GPU_REHEARSAL they run on the CPU,
    by gloo where there are several; those that can't (`cpu=False`) skip themselves there."""
    for mark in item.iter_markers("gpu"):
        import torch

        wanted, cards = mark.kwargs.get("cards", 1), torch.cuda.device_count()
        if "SSO_GPU_REHEARSAL" in os.environ:
            if not mark.kwargs.get("cpu", True):
                pytest.skip("no CPU can rehearse it")
        elif cards < wanted:
            pytest.skip(f"needs {wanted} GPU{'s' * (wanted > 1)}, {cards or 'none'} here")


@pytest.fixture(autouse=True)
def environment() -> Iterator[None]:
    """What a test or the code under it sets in the environment is gone after it."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


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
