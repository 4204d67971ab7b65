import json
import logging
import os


def init():
    global weights
    with open(os.path.join(os.environ["AZUREML_MODEL_DIR"], "weights.json")) as f:
        weights = json.load(f)


def run(data):
    rows = json.loads(data)["data"]
    logging.info("%d rows", len(rows))
    return {"scores": [sum(w * x for w, x in zip(weights, row)) for row in rows]}
