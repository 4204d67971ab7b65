"""An ONNX model behind azureml-inference-server-http: {"inputs": {name: values}} in, {"outputs": {name: values}} out."""

import json
import os

import numpy as np
import onnxruntime

TYPES = {"tensor(float)": np.float32, "tensor(int64)": np.int64}


def init():
    global session, types, names
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = int(os.environ["THREADS"])
    session = onnxruntime.InferenceSession(os.environ["MODEL"], options, providers=["CPUExecutionProvider"])
    types = {i.name: TYPES[i.type] for i in session.get_inputs()}
    names = [o.name for o in session.get_outputs()]


def run(data):
    feeds = {name: np.array(values, dtype=types[name]) for name, values in json.loads(data)["inputs"].items()}
    return {"outputs": {name: out.tolist() for name, out in zip(names, session.run(names, feeds))}}
