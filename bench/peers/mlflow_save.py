"""Saves an MLflow model: mlflow_save.py onnx MODEL DIRECTORY, or mlflow_save.py script SCORE.PY DIRECTORY."""

import sys

import mlflow

kind, source, directory = sys.argv[1:]
if kind == "onnx":
    import onnx
    import onnxruntime

    session = onnxruntime.InferenceSession(source, providers=["CPUExecutionProvider"])
    import numpy as np
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    types = {"tensor(float)": np.dtype("float32"), "tensor(int64)": np.dtype("int64")}

    def schema(ports):
        return Schema([TensorSpec(types[p.type], tuple(d if isinstance(d, int) else -1 for d in p.shape), p.name) for p in ports])

    mlflow.onnx.save_model(
        onnx.load(source), directory, signature=ModelSignature(schema(session.get_inputs()), schema(session.get_outputs())),
        onnx_execution_providers=["CPUExecutionProvider"], onnx_session_options={"intra_op_num_threads": 1},
        pip_requirements=[],
    )
else:
    mlflow.pyfunc.save_model(directory, loader_module="mlflow_script", code_paths=[source, __file__.replace("save", "script")], pip_requirements=[])
