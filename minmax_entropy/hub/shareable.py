"""A model that can be saved, loaded and shared: the interface of `huggingface_hub`'s mixin, done by `hub`."""

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
    """Save, load and share a model that has `config_keywords()` and `settings()`."""

    @staticmethod
    def config_defaults() -> dict[str, Any]:
        """Return the keywords of a saved model whose configuration, of an earlier version, does not have them."""
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
        """Return a saved model, in evaluation mode.

        Args:
            pretrained_model_name_or_path: a directory of `save_pretrained`, or "ORG/NAME" on the Hugging Face Hub; what
                is a directory here is taken from here. With the prefix `local-dir:` or `hf-hub:` it is that.
            revision: branch, tag or commit on the Hub.
            cache_dir, token, force_download, local_files_only: as in `huggingface_hub.hf_hub_download`.
            keywords: of the class, in place of the saved ones; see `minmax_entropy.hub.loading.load_model`.

        Raises:
            FileNotFoundError: no such model, revision or file, or not in the cache while offline.
            ConnectionError: the server can't be reached, or was lost half-way.
            ValueError: what is there can't be read, can't be trusted or does not fit.
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

        The directory is written under a temporary name and then renamed: it is whole or not there. An earlier model in
        it is replaced, other files stay, and so does a `README.md` of your own.

        Args:
            save_directory: where to; its parent is made.
            class_names: names of the classes, in the order of the logits; by default those the model has.
            metrics: figures by name, for the card.
            license: of the weights ("apache-2.0"); by default that of the weights the model started from.
            training_data: what the model was trained on, in words or as names of data sets on the Hub.
            example: an image whose prediction the card shows.
            max_shard_size: larger weights are split into files of this size.

        Returns:
            The directory.

        Raises:
            ValueError: the model has a backbone or head given as a module, the number of names is not that of classes,
                the weights hold NaN or infinite values, or the model is no longer what its settings say.
            FileExistsError: the directory holds something else than a saved model.
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
        """Upload the model to the Hugging Face Hub, in one commit; the repository is made if there is none.

        Args:
            repo_id: "ORG/NAME".
            commit_message: of the commit.
            private: whether a new repository is private; by default as the organization has it.
            token: to log in with; by default that of `hf auth login`.
            branch: to commit to, made if there is none; the main branch by default.
            create_pr: open a pull request instead.
            keywords: those of `save_pretrained`: `class_names`, `metrics`, `license`, `training_data`, `example`, ...

        Returns:
            The address of the commit.

        Raises:
            ValueError: as `save_pretrained`; nothing is uploaded then.
            OSError: the server refused, or can't be reached.
        """
        upload = dict(commit_message=commit_message, private=private, token=token, branch=branch, create_pr=create_pr)
        return saving.push_to_hub(self, repo_id, **upload, **keywords)

    def generate_model_card(self, *args: Any, **keywords: Any) -> ModelCard:
        """Return the model card; keywords as in `minmax_entropy.hub.card.model_card`."""
        return model_card(self, *args, **keywords)
