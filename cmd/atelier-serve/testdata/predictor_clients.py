"""Uses a model in Python, which changes the sign, with clients of several dialects as they come."""

import sys

import numpy as np
import pandas as pd
import tritonclient.grpc as grpc
import tritonclient.http as http
from mlflow.pyfunc.scoring_server.client import ScoringServerClient

address = sys.argv[1]
x = np.array([[1, -2, 3]], dtype=np.float64)
for triton in http, grpc:
    client = triton.InferenceServerClient(address)
    assert client.is_model_ready("m")
    given = triton.InferInput("input", [1, 3], "FP64")
    given.set_data_from_numpy(x)
    got = client.infer("m", [given]).as_numpy("predictions")
    assert got.dtype == np.float64 and (got == -x).all(), got

client = ScoringServerClient(*address.split(":"))
frame = pd.DataFrame(x, columns=list("abc"))
for data in frame, x:
    assert client.invoke(data)["predictions"] == [[-1, 2, -3]]
print("ok")
