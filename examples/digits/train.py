"""Trains the two versions of the digits classifier that the demo deploys.

    pip install scikit-learn==1.7.2 onnx==1.23.2
    python examples/digits/train.py

reads the handwritten digits that scikit-learn brings along (UCI, 8 x 8 pixels, values 0 to 16), trains on two
thirds of them and writes beside this file:

    digits-v1.onnx     one linear layer, softmax
    digits-v2.onnx     64-32-10 with ReLU, softmax
    held-out.json      the last third, never trained on: {"pixels": [[64 numbers], ...], "digits": [...]}

Both models take "pixels" (FP32 [-1, 64]) and give "probabilities" (FP32 [-1, 10]) and "digit" (INT64 [-1]).
The same versions of the packages give the same files again.
"""

import json
import pathlib

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier

HERE = pathlib.Path(__file__).parent


def network(name, layers):
    """Writes [(weights, bias), ...] as Gemm and Relu, then Softmax and ArgMax."""
    nodes, tensors, value = [], [], "scaled"
    tensors.append(numpy_helper.from_array(np.float32(16), "white"))
    nodes.append(helper.make_node("Div", ["pixels", "white"], ["scaled"]))
    for i, (weights, bias) in enumerate(layers):
        tensors.append(numpy_helper.from_array(weights.astype(np.float32), f"w{i}"))
        tensors.append(numpy_helper.from_array(bias.astype(np.float32), f"b{i}"))
        nodes.append(helper.make_node("Gemm", [value, f"w{i}", f"b{i}"], [f"y{i}"]))
        value = f"y{i}"
        if i + 1 < len(layers):
            nodes.append(helper.make_node("Relu", [value], [f"z{i}"]))
            value = f"z{i}"
    nodes.append(helper.make_node("Softmax", [value], ["probabilities"], axis=1))
    nodes.append(helper.make_node("ArgMax", [value], ["digit"], axis=1, keepdims=0))
    graph = helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["batch", 64])],
        [
            helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", 10]),
            helper.make_tensor_value_info("digit", TensorProto.INT64, ["batch"]),
        ],
        tensors,
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8, producer_name="atelier-examples"
    )
    onnx.checker.check_model(model, full_check=True)
    (HERE / f"{name}.onnx").write_bytes(model.SerializeToString())


def main():
    pixels, digits = load_digits(return_X_y=True)
    train_x, test_x, train_y, test_y = train_test_split(
        pixels, digits, test_size=1 / 3, random_state=7, stratify=digits
    )

    linear = LogisticRegression(C=0.01, max_iter=500).fit(train_x / 16, train_y)
    network("digits-v1", [(linear.coef_.T, linear.intercept_)])

    mlp = MLPClassifier((32,), max_iter=600, random_state=7).fit(train_x / 16, train_y)
    network("digits-v2", list(zip(mlp.coefs_, mlp.intercepts_)))

    held_out = {"pixels": test_x.astype(int).tolist(), "digits": test_y.tolist()}
    (HERE / "held-out.json").write_text(json.dumps(held_out, separators=(",", ":")) + "\n")
    print(f"accuracy on {len(test_y)} held-out digits: "
          f"v1 {linear.score(test_x / 16, test_y):.4f}, v2 {mlp.score(test_x / 16, test_y):.4f}")


if __name__ == "__main__":
    main()
