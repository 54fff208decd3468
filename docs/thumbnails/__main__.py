"""Draw the gallery's thumbnails, one for each example, into docs/_static/thumbnails.

A picture of an example has too many small words to be a thumbnail. These draw real
results on the same data with few words, and are legible at 400 x 280 pixels. An example
names its own by ``# sphinx_gallery_thumbnail_path``. They are kept in the repository,
so building the site does not draw them. Drawing all takes about five minutes on one
core.

    python docs/thumbnails                     # all of them
    python docs/thumbnails reliability         # one of them
"""

import argparse
from pathlib import Path

import calibration
import inputs
import labels
import matplotlib.pyplot as plt
import searches
import tools
from drawing import STYLE

FOLDER = Path(__file__).parents[1] / "_static" / "thumbnails"
DRAWN = {
    draw.__name__: draw
    for draw in (
        calibration.reliability,
        labels.what_it_believes,
        labels.find_wrong_labels,
        calibration.calibration_methods,
        calibration.calibration_before_after,
        searches.search_prior_strength,
        inputs.table_pipeline,
        inputs.own_module,
        inputs.text,
        inputs.image_folders,
        inputs.pretrained_backbone,
        inputs.table_and_image,
        calibration.rare_class,
        tools.several_processes,
        searches.stacked_search,
        calibration.prediction_sets,
        searches.optuna_pruning,
        tools.mlflow_model,
    )
}


def main() -> None:
    """Draw those that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="name", help="default: all")
    names = parser.parse_args().names or list(DRAWN)
    if unknown := set(names) - set(DRAWN):
        parser.error(f"no such thumbnail: {unknown}; there are {', '.join(DRAWN)}")
    FOLDER.mkdir(parents=True, exist_ok=True)
    with plt.rc_context(STYLE):
        for name in names:
            figure = plt.figure(figsize=(4, 2.8), layout="constrained")
            DRAWN[name](figure)
            figure.savefig(FOLDER / f"{name}.png", dpi=200)
            plt.close(figure)
            print(f"drew {name}", flush=True)


if __name__ == "__main__":
    main()
