"""Writes calibration.json beside this file: 200 of the digits that examples/digits/train.py trains on.

    pip install scikit-learn
    python fpga/overlay/testdata/calibration.py

They are drawn from the same two thirds, so none of them is among the held-out digits.
"""

import json
import pathlib

from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

HERE = pathlib.Path(__file__).parent

pixels, digits = load_digits(return_X_y=True)
train, held_out, _, _ = train_test_split(pixels, digits, test_size=1 / 3, random_state=7, stratify=digits)
known = json.loads((HERE / "../../../examples/digits/held-out.json").read_text())["pixels"]
assert held_out.astype(int).tolist() == known, "this is another split than train.py's"
(HERE / "calibration.json").write_text(json.dumps(train[:200].astype(int).tolist(), separators=(",", ":")) + "\n")
