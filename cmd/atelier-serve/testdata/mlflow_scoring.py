"""Uses a model server with MLflow's scoring client as it comes."""

import sys

import numpy as np
import pandas as pd
import requests
from mlflow.pyfunc.scoring_server.client import ScoringServerClient

host, port = sys.argv[1].split(":")
client = ScoringServerClient(host, port)
client.wait_server_ready(timeout=10)
assert client.get_version()

frame = pd.DataFrame([[1, 2, 3, 4], [5, 6, 7, 8.5]], columns=list("abcd"), index=["first", "second"])
got = client.invoke(frame).get_predictions()
assert list(got.columns) == ["y", "z"] and got["y"].tolist() == [[3, 5, 7, 9], [11, 13, 15, 18]], got
assert got["z"].tolist() == [[-1, -2, -3, -4], [-5, -6, -7, -8.5]], got

array = np.array([[1, 2, 3, 4]], dtype=np.float32)
assert client.invoke(array)["predictions"] == {"y": [[3, 5, 7, 9]], "z": [[-1, -2, -3, -4]]}
assert client.invoke([[1, 2, 3, 4]])["predictions"]["y"] == [[3, 5, 7, 9]]
try:
    client.invoke(frame, params={"temperature": 1})
    raise SystemExit("params were accepted")
except Exception as e:
    assert "error code 422" in str(e) and "takes none" in str(e), e
try:
    client.invoke(frame[["a", "b"]])
    raise SystemExit("a frame of two columns was accepted")
except Exception as e:
    assert "error code 400" in str(e) and '"error_code":"BAD_REQUEST"' in str(e), e

# What its documentation sends by other means.
url = f"http://{host}:{port}/invocations"
records = [{"y": [3, 5, 7, 9], "z": [-1, -2, -3, -4]}]
for kwargs in (
    {"json": {"dataframe_records": frame[:1].to_dict(orient="records")}},
    {"data": frame[:1].to_csv(index=False), "headers": {"Content-Type": "text/csv"}},
    {"data": frame[:1].to_csv(index=False), "headers": {"Content-Type": "text/csv; charset=utf-8"}},
):
    answer = requests.post(url, **kwargs)
    assert answer.status_code == 200 and answer.json()["predictions"] == records, answer.text
for body in ({"instances": [[1, 2, 3, 4]]}, {"instances": [{"x": [1, 2, 3, 4]}]}, {"inputs": {"x": [[1, 2, 3, 4]]}}):
    answer = requests.post(url, json=body)
    assert answer.status_code == 200 and answer.json()["predictions"]["y"] == [[3, 5, 7, 9]], answer.text
print("ok")
