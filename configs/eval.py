"""PSNR, SSIM and PSNR-B on test sets, plain JPEG beside the weights given.

    python -m cqr_jax.main --config=configs/eval.py --config.set_dir=FOLDER
    python -m cqr_jax.main --config=configs/eval.py \
        --config.sets=live1 --config.weights=runs/deblock-paper/deblocker.safetensors
    python -m cqr_jax.main --config=configs/eval.py --config.sets=FOLDER_OF_IMAGES

FOLDER holds classic5/, live1/ and bsds500/{train,val,test}/.
"""

from ml_collections import ConfigDict

from cqr_jax.config import parse


def get_config(text: str = "") -> ConfigDict:
    """The config of the evaluation."""
    parse(text, "configs/eval.py", preset=("table2",))

    c = ConfigDict()
    c.task = "eval"
    c.workdir = "runs/eval"  # rows.json and panels go here
    c.set_dir = "data/eval"  # folder that holds the named test sets
    # classic5, live1, bsds500-test, bsds500, embedded, or folders of images
    c.sets = ("classic5", "live1", "bsds500-test", "bsds500")
    c.qualities = (10, 20, 30)  # JPEG quality factors, 1 to 100
    c.weights = ""  # deblocker to evaluate; empty for plain JPEG alone
    c.panels = False  # write original, JPEG and restored side by side, a PNG an image
    return c
