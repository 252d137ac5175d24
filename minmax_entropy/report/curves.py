"""Learning curves of a training run, as a PNG."""

from __future__ import annotations

from pathlib import Path

from minmax_entropy._files import written_whole

# Panels of the figure: title, and the columns shown where the log has them.
PANELS = {
    "loss": ("loss", "localizer", "foreground", "background", "size", "border", "control"),
    "classification error": ("train_error", "valid_error"),
    "mean mask": ("mask_area", "valid_mask_area"),
    "localization (validation)": ("valid_f1_foreground", "valid_f1_background", "valid_pxap"),
    "learning rate": ("lr",),
}


def write_curves(log: list[dict], path: Path, title: str) -> None:
    """Draw learning curves over the epochs, with a panel for each kind of value."""
    from matplotlib.figure import Figure  # from the [train] extra, which `fit` requires

    panels = {name: [key for key in keys if any(key in row for row in log)] for name, keys in PANELS.items()}
    panels = {name: keys for name, keys in panels.items() if keys}
    figure = Figure(figsize=(4 * len(panels), 3.2))
    figure.subplots_adjust(left=0.04, right=0.99, bottom=0.15, top=0.82, wspace=0.25)
    figure.suptitle(title)
    for axes, (name, keys) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        for key in keys:
            rows = [row for row in log if key in row]
            axes.plot([row["epoch"] for row in rows], [row[key] for row in rows], label=key, marker=".", linewidth=1)
        axes.margins(y=0.1)
        axes.set_title(name, fontsize=10)
        axes.set_xlabel("epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        if name == "learning rate":
            axes.ticklabel_format(style="sci", axis="y", scilimits=(0, 0))
        else:
            axes.set_ylim(bottom=min(0.0, *(row[key] for key in keys for row in log if key in row)))
            axes.legend(fontsize=7)
    with written_whole(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
