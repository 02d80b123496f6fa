"""Evaluation: Tables 1 and 2, the ranker's accuracy, blind use, or colour.

    python -m cqr_jax.main --config=configs/eval.py
    python -m cqr_jax.main --config=configs/eval.py --config.sets=live1,bsds500-test \
        --config.weights=runs/a/deblocker.safetensors,runs/b/deblocker.safetensors
    python -m cqr_jax.main --config=configs/eval.py:ablation
    python -m cqr_jax.main --config=configs/eval.py:ranker \
        --config.weights=runs/ranker-compact/ranker.safetensors
    python -m cqr_jax.main --config=configs/eval.py:blind \
        --config.weights=runs/a/deblocker.safetensors
    python -m cqr_jax.main --config=configs/eval.py:colour \
        --config.weights=runs/a/deblocker.safetensors

Presets:

- table2 (default): JPEG, weights, and folders of restored images, and the published
  results below them
- ablation: Table 1, from the runs of configs/ablation.py
- ranker: accuracy, rank correlation and a plot of the score
- blind: gain of deblockers at QF 5 to 95, on shifted grids and after double compression
- colour: as table2 over RGB, without folders
- blind_colour: as blind for colour JPEGs, at QF 5 to 100
"""

from ml_collections import ConfigDict

from cqr_jax.config import parse


def get_config(text: str = "") -> ConfigDict:
    """The config of the evaluation named by `text`."""
    preset = parse(text, "configs/eval.py", preset=PRESETS)["preset"]

    c = ConfigDict()
    c.task = "eval" if preset == "table2" else f"eval_{preset}"
    c.workdir = "runs/eval"  # tables, metrics of each image, pictures
    c.set_dir = "data/eval"  # folder of the named sets; missing sets are downloaded
    # classic5, live1, bsds500-test (200), bsds500 (500), embedded, folders of images;
    # FOLDER:validation: the images that data_prep.build holds out from training
    c.sets = "classic5,live1,bsds500-test,bsds500"

    if preset == "ranker":
        # ranker.json, ranker.png, scores.csv, typical.tsv
        c.workdir = "runs/eval-ranker"
        c.sets = "live1"
        c.weights = ""  # the ranker's weights
        c.min_quality = 1  # lowest JPEG quality factor of the pairs, as in training
        c.max_quality = 30  # highest JPEG quality factor of the pairs
        c.levels = 3  # quality levels, which divide that range equally
        c.side = 256  # side of the central square of each image; 0: whole images
        return c

    if preset == "blind":
        c.workdir = "runs/eval-blind"  # blind.json, blind.csv, blind.md
        c.sets = "classic5,live1"
        c.weights = ""  # weights of deblockers, a column each
        return c

    if preset == "blind_colour":
        c.workdir = "runs/eval-blind-colour"  # blind.json, blind.csv, blind.md
        c.sets = "live1"
        c.weights = ""  # weights of deblockers for Y or colour, a column each
        c.projection = True  # project onto the quantisation intervals of the file
        return c

    if preset == "colour":
        c.workdir = "runs/eval-colour"  # tables, metrics of each image
        c.sets = "live1,bsds500-test"
        c.weights = ""  # weights of deblockers for Y or colour, a column each
        c.qualities = (10, 20, 30, 40)  # JPEG quality factors, 1 to 100
        c.subsampling = "4:2:0"  # chroma subsampling: 4:2:0, 4:2:2 or 4:4:4
        c.projection = True  # project onto the quantisation intervals of the file
        c.self_ensemble = False  # average over flips and rotations; 8 times as slow
        return c

    c.qualities = (10, 20, 30)  # JPEG quality factors, 1 to 100
    c.self_ensemble = False  # average over flips and rotations; 8 times as slow
    # write a PNG of each image and quality factor: JPEG, restored and original side by
    # side
    c.panels = False
    # write the images of each method to images/METHOD/q10/SET/NAME.png
    c.save_images = False
    if preset == "table2":
        c.weights = ""  # weights of deblockers, a column each
        # folders of images restored by other methods: FOLDER/q10/live1/caps.png
        c.restored = ""
    else:
        c.workdir = "runs/ablation-compact"  # folder of the runs and the tables
        c.sets = "bsds500"
        # images.csv of earlier evaluations, whose runs are added to the tables
        c.measured = ""
    return c


PRESETS = ("table2", "ablation", "ranker", "blind", "colour", "blind_colour")
