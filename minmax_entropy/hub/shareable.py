"""Models that can be saved, loaded and shared, with the interface of `huggingface_hub`'s mixin."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import ModelCard, PyTorchModelHubMixin

from minmax_entropy.hub import loading, saving
from minmax_entropy.hub.card import model_card
from minmax_entropy.hub.names import HUB, LOCAL, SOURCES

if TYPE_CHECKING:
    from PIL import Image
    from typing_extensions import Self


class Shareable(
    PyTorchModelHubMixin,
    library_name="minmax_entropy",
    paper_url="https://arxiv.org/abs/1907.12934",
    pipeline_tag="image-segmentation",
    tags=["image-classification", "weakly-supervised-localization", "weakly-supervised-segmentation"],
):
    """Base class of models that can be saved, loaded and shared; they have `config_keywords()` and `settings()`."""

    @staticmethod
    def config_defaults() -> dict[str, Any]:
        """Return keywords that are missing in configurations of earlier versions, with their values."""
        return {}

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        token: str | bool | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
        **keywords: Any,
    ) -> Self:
        """Load a saved model, in evaluation mode.

        Args:
            pretrained_model_name_or_path: a directory written by `save_pretrained`, or "ORG/NAME" on the Hugging Face
                Hub; an existing directory takes precedence. A prefix `local-dir:` or `hf-hub:` decides which it is.
            revision: branch, tag or commit on the Hub.
            cache_dir, token, force_download, local_files_only: as in `huggingface_hub.hf_hub_download`.
            keywords: keywords of the class that replace the saved ones; see `minmax_entropy.hub.loading.load_model`.

        Raises:
            FileNotFoundError: no such model, revision or file, or not in the cache while offline.
            ConnectionError: the server can't be reached, or the connection was lost.
            ValueError: the files can't be read, can't be trusted or do not fit.
        """
        source = str(pretrained_model_name_or_path)
        if not source.startswith(SOURCES):
            source = f"{LOCAL if Path(source).expanduser().is_dir() else HUB}{source}"
        client = dict(cache_dir=cache_dir, token=token, force_download=force_download)
        client |= dict(revision=revision, local_files_only=local_files_only)
        return loading.load_model(cls, source, **client, **keywords).eval()

    def save_pretrained(
        self,
        save_directory: str | Path,
        *,
        class_names: list[str] | None = None,
        metrics: dict[str, Any] | None = None,
        license: str | None = None,
        training_data: str | list[str] | None = None,
        example: str | Path | Image.Image | None = None,
        max_shard_size: int | str = "5GB",
    ) -> Path:
        """Write `config.json`, `model.safetensors` and a model card, `README.md`, to a directory.

        The directory is written under a temporary name and then renamed: it is complete or does not exist. An earlier
        model in it is replaced; other files stay, and so does a `README.md` of your own.

        Args:
            save_directory: directory to write; its parent is created.
            class_names: names of the classes, in the order of the logits; by default the model's.
            metrics: figures by name, for the card.
            license: licence of the weights ("apache-2.0"); by default that of the weights the model started from.
            training_data: data that the model was trained on, in words or as names of data sets on the Hub.
            example: an image whose prediction the card shows.
            max_shard_size: larger weights are split into files of this size.

        Returns:
            The directory.

        Raises:
            ValueError: a backbone or head was given as a module, the number of names differs from that of classes, the
                weights hold NaN or infinite values, or the model no longer matches its settings.
            FileExistsError: the directory holds something other than a saved model.
        """
        return saving.save_pretrained(
            self,
            save_directory,
            class_names=class_names,
            metrics=metrics,
            license=license,
            training_data=training_data,
            example=example,
            max_shard_size=max_shard_size,
        )

    def push_to_hub(
        self,
        repo_id: str,
        *,
        commit_message: str = "Upload a model of minmax_entropy",
        private: bool | None = None,
        token: str | bool | None = None,
        branch: str | None = None,
        create_pr: bool | None = None,
        **keywords: Any,
    ) -> str:
        """Upload the model to the Hugging Face Hub, in one commit; the repository is created if there is none.

        Args:
            repo_id: "ORG/NAME".
            commit_message: message of the commit.
            private: whether a new repository is private; by default the organization's setting.
            token: token to log in with; by default that of `hf auth login`.
            branch: branch to commit to, created if there is none; the main branch by default.
            create_pr: open a pull request instead.
            keywords: those of `save_pretrained`: `class_names`, `metrics`, `license`, `training_data`, `example`, ...

        Returns:
            The address of the commit.

        Raises:
            ValueError: as for `save_pretrained`; nothing is uploaded then.
            OSError: the server refused the upload, or can't be reached.
        """
        upload = dict(commit_message=commit_message, private=private, token=token, branch=branch, create_pr=create_pr)
        return saving.push_to_hub(self, repo_id, **upload, **keywords)

    def generate_model_card(self, *args: Any, **keywords: Any) -> ModelCard:
        """Return the model card; keywords as in `minmax_entropy.hub.card.model_card`."""
        return model_card(self, *args, **keywords)
