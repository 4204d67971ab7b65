"""Makes models with MLflow and scikit-learn, and writes what MLflow's scoring server answers to requests.

    models.py DIRECTORY
"""

import asyncio
import json
import os
import sys
import warnings

os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
warnings.simplefilter("ignore")

import joblib
import mlflow.pyfunc
import mlflow.sklearn
import numpy
import pandas
from mlflow.models import infer_signature
from mlflow.pyfunc import scoring_server
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OrdinalEncoder

out = sys.argv[1]
random = numpy.random.default_rng(1)
columns = ["length", "width", "height"]
frame = pandas.DataFrame(random.normal(size=(60, 3)), columns=columns)
target = (frame.length + frame.width > 0).astype("int64")
requirements = ["mlflow-skinny", "pandas", "scikit-learn"]


def save(name, model, signature=None):
    mlflow.sklearn.save_model(model, os.path.join(out, name), signature=signature, serialization_format="cloudpickle", pip_requirements=requirements)


by_name = LogisticRegression().fit(frame, target)
save("frame", by_name, infer_signature(frame, by_name.predict(frame)))
matrix = frame.to_numpy()
by_order = LinearRegression().fit(matrix, matrix @ numpy.array([[1.0, 0.5], [2, 0], [0, 3]]))
save("tensor", by_order, infer_signature(matrix, by_order.predict(matrix)))
save("bare", by_order)
words = pandas.DataFrame({"colour": ["red", "green", "blue"] * 4, "size": numpy.arange(12, dtype="int64")})
mixed = make_pipeline(OrdinalEncoder(), LinearRegression()).fit(words, words["size"] * 2.0)
save("words", mixed, infer_signature(words, mixed.predict(words)))
joblib.dump(by_name, os.path.join(out, "frame.joblib"))
joblib.dump({"no": "model"}, os.path.join(out, "other.pkl"))

rows = [[0.5, -1.25, 3], [2, 1, 0.125]]
records = [dict(zip(columns, row)) for row in rows]
bodies = {
    "frame": [
        {"dataframe_split": {"columns": columns, "data": rows}},
        {"dataframe_split": {"columns": columns[::-1], "data": [row[::-1] for row in rows]}},
        {"dataframe_records": records},
        {"instances": records},
        {"inputs": {name: [row[i] for row in rows] for i, name in enumerate(columns)}},
        {"inputs": rows},
        "length,width,height\n0.5,-1.25,3\n2,1,0.125\n",
        # and what it refuses
        {"dataframe_split": {"columns": columns[:2], "data": [[1, 2]]}},
        {"dataframe_records": [dict(records[0], height="tall")]},
        {"instances": rows, "inputs": rows},
        {"rows": rows},
        "[1, 2",
        "length,width\n1,2\n",
    ],
    "tensor": [{"instances": rows}, {"inputs": rows}, {"inputs": [[1, 2]]}, {"instances": [["a", 2, 3]]}],
    "bare": [{"instances": rows}, {"dataframe_split": {"columns": columns, "data": rows}}],
    "words": [
        {"dataframe_records": [{"colour": "red", "size": 3}, {"colour": "blue", "size": 4}]},
        {"dataframe_records": [{"colour": "red", "size": 3.5}]},
        "colour,size\ngreen,7\n",
    ],
}


async def ask(app, kind, body):
    """Returns status and body of what an ASGI application answers."""
    got = {"status": 0, "body": b""}

    async def receive():
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message):
        if message["type"] == "http.response.start":
            got["status"] = message["status"]
        elif message["type"] == "http.response.body":
            got["body"] += message.get("body", b"")

    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http", "path": "/invocations",
        "raw_path": b"/invocations", "query_string": b"", "root_path": "", "headers": [(b"content-type", kind.encode())],
        "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 2),
    }
    await app(scope, receive, send)
    return got


cases = []
for name, all in bodies.items():
    model = mlflow.pyfunc.load_model(os.path.join(out, name))
    app = scoring_server.init(model)
    for body in all:
        kind = "text/csv" if isinstance(body, str) and "," in body and not body.startswith("[") else "application/json"
        text = body if isinstance(body, str) else json.dumps(body)
        got = asyncio.run(ask(app, kind, text.encode()))
        cases.append({"model": name, "type": kind, "body": text, "status": got["status"], "answer": got["body"].decode()})

predict = {
    "frame": mlflow.pyfunc.load_model(os.path.join(out, "frame")).predict(pandas.DataFrame(rows, columns=columns)).tolist(),
    "tensor": mlflow.pyfunc.load_model(os.path.join(out, "tensor")).predict(numpy.array(rows)).tolist(),
}
with open(os.path.join(out, "expected.json"), "w") as f:
    json.dump({"cases": cases, "predict": predict}, f)
