"""The scoring script as an MLflow model of the python_function flavour."""

import score


class Model:
    def predict(self, rows, params=None):
        digits, p = score.score(rows)
        return {"digit": digits, "probabilities": p}


def _load_pyfunc(_path):
    score.init()
    return Model()
