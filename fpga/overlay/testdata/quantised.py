"""Writes the digits classifier as ONNX Runtime quantises it: digits-qdq.onnx and digits-qoperator.onnx, beside this file.

    pip install onnx onnxruntime sympy
    python fpga/overlay/testdata/quantised.py
"""

import json
import pathlib

import numpy as np
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

HERE = pathlib.Path(__file__).parent
MODEL = HERE / "../../../examples/digits/digits-v2.onnx"


class Digits(CalibrationDataReader):
    def __init__(self):
        pixels = json.loads((HERE / "calibration.json").read_text())
        self.rows = iter([{"pixels": np.float32([row])} for row in pixels])

    def get_next(self):
        return next(self.rows, None)


for name, form, kinds in [
    ("digits-qdq", QuantFormat.QDQ, (QuantType.QInt8, QuantType.QInt8)),
    ("digits-qoperator", QuantFormat.QOperator, (QuantType.QUInt8, QuantType.QInt8)),
]:
    quantize_static(
        MODEL, HERE / f"{name}.onnx", Digits(), quant_format=form, activation_type=kinds[0], weight_type=kinds[1],
        op_types_to_quantize=["Gemm", "MatMul", "Relu"], extra_options={"WeightSymmetric": True},
    )
