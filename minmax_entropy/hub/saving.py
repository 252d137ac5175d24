"""Saving of models to a folder, and uploading them."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub.errors import HFValidationError
from PIL import Image
from torch import nn

from minmax_entropy._files import written_whole
from minmax_entropy.hub.card import MARK, write_card
from minmax_entropy.hub.config import read_config, to_config
from minmax_entropy.hub.directories import replacing
from minmax_entropy.hub.names import CARD_NAME, CONFIG_NAME, EXAMPLE_NAME, HUB, LOCAL
from minmax_entropy.hub.weights import INDEX_NAME, write_weights


def save_pretrained(
    model: nn.Module,
    directory: str | Path,
    *,
    class_names: list[str] | None = None,
    metrics: dict[str, Any] | None = None,
    license: str | None = None,
    training_data: str | list[str] | None = None,
    example: str | Path | Image.Image | None = None,
    max_shard_size: int | str = "5GB",
    repo_id: str | None = None,
) -> Path:
    """Write a model to a directory; see `WSLModel.save_pretrained`. `repo_id` is the repository that its card names."""
    directory = Path(directory).expanduser().resolve()
    if class_names is None:
        class_names = model.class_names
    elif not isinstance(class_names, str):
        class_names = list(class_names)
    given = dict(metrics=metrics, license=license, training_data=training_data)
    info = {**model.info, "metrics": None, **{key: value for key, value in given.items() if value is not None}}
    config = to_config(model, class_names, info)
    check_target(directory, type(model))
    with replacing(directory) as staging:
        (staging / CONFIG_NAME).write_text(config, encoding="utf-8")
        write_weights(model.state_dict(), staging, max_shard_size)
        for path in staging.glob("*.safetensors"):
            shutil.copymode(staging / CONFIG_NAME, path)  # safetensors makes files that only their owner can read
        source = f"{HUB}{repo_id}" if repo_id else f"{LOCAL}{directory.name}"
        write_card(model, staging, source, class_names=class_names, info=info, example=example)
    return directory


def save_settings(model: nn.Module, directory: str | Path) -> Path:
    """Rewrite the configuration of a saved model with the current settings of the model; the weights stay.

    Args:
        model: model loaded from the directory, with changed settings such as `mask_threshold`.
        directory: directory of the saved model.

    Returns:
        Path of the configuration.

    Raises:
        FileNotFoundError: the directory has no saved model.
        ValueError: the model would not load again.
    """
    path = Path(directory).expanduser() / CONFIG_NAME
    read_config(path, type(model))
    text = to_config(model, model.class_names, model.info)
    with written_whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
        shutil.copymode(path, temporary)
    return path


def check_target(directory: str | Path, kind: type[nn.Module]) -> None:
    """Check that `save_pretrained` would overwrite nothing but a saved model in this place.

    Raises:
        FileExistsError: the place is a file, or a directory that holds something else.
    """
    directory = Path(directory)
    if directory.exists() and not directory.is_dir():
        raise FileExistsError(f"{directory} is a file, a model is a directory")
    if directory.exists() and any(directory.iterdir()):
        try:
            read_config(directory / CONFIG_NAME, kind)
        except (FileNotFoundError, ValueError) as error:
            raise FileExistsError(
                f"{directory} is not empty and not a saved model, nothing was written: {error}"
            ) from None


def push_to_hub(
    model: nn.Module,
    repo_id: str,
    *,
    commit_message: str,
    private: bool | None = None,
    token: str | bool | None = None,
    branch: str | None = None,
    create_pr: bool | None = None,
    **keywords: Any,
) -> str:
    """Upload a model; see `WSLModel.push_to_hub`. It is written to disk first, so that a model that can't be saved
    does not leave an empty repository."""
    if repo_id.count("/") != 1:
        raise ValueError(f"{repo_id!r} is not the name of a repository, ORG/NAME")
    api = huggingface_hub.HfApi(token=token)
    with tempfile.TemporaryDirectory() as folder:
        saved = save_pretrained(model, Path(folder) / "model", repo_id=repo_id, **keywords)
        try:
            name = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
            if branch is not None:
                api.create_branch(name, branch=branch, exist_ok=True)
            own_card = _has_own_card(name, branch, token)
            return api.upload_folder(
                repo_id=name,
                folder_path=saved,
                commit_message=commit_message,
                revision=branch,
                create_pr=create_pr,
                ignore_patterns=[CARD_NAME] if own_card else None,
                delete_patterns=["model*.safetensors", INDEX_NAME, *([] if own_card else [EXAMPLE_NAME])],
            )
        except HFValidationError as error:
            raise ValueError(f"{repo_id!r} is not the name of a repository, ORG/NAME: {error}") from error
        except Exception as error:  # of the network or the server; the client has many kinds
            cause = f" ({error.__cause__})" if error.__cause__ else ""
            raise OSError(f"{repo_id} could not be uploaded to {api.endpoint}: {error}{cause}") from error


def _has_own_card(repo_id: str, branch: str | None, token: str | bool | None) -> bool:
    """Return whether a repository has a card that a user wrote."""
    try:
        path = huggingface_hub.hf_hub_download(repo_id, CARD_NAME, revision=branch, token=token)
    except Exception:  # there is none, as in every new repository
        return False
    return MARK not in Path(path).read_text(encoding="utf-8", errors="replace")
