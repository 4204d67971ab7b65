"""Trains small convolutional networks on the digits, and writes them beside this file as ONNX:

    pip install jax==0.10.2 scikit-learn==1.7.2 onnx==1.23.2 onnxruntime sympy
    python fpga/overlay/testdata/convolutional.py

    digits-conv.onnx         8 filters of 3 x 3, 16 of 3 x 3 with a stride of 2, a dense layer; ReLU between them
    digits-residual.onnx     a convolution, a residual block with a sigmoid-weighted unit's kin (HardSwish), max pool,
                             global average pool, a dense layer
    digits-conv-qdq.onnx, digits-conv-qoperator.onnx   the first one, as ONNX Runtime quantises it

They are trained on the digits that examples/digits/train.py trains on.
"""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

HERE = pathlib.Path(__file__).parent
pixels, digits = load_digits(return_X_y=True)
x, held_x, y, held_y = train_test_split(pixels, digits, test_size=1 / 3, random_state=7, stratify=digits)
known = json.loads((HERE / "../../../examples/digits/held-out.json").read_text())["pixels"]
assert held_x.astype(int).tolist() == known, "this is another split than train.py's"


def conv(p, name, x, stride=1, pad=0):
    out = jax.lax.conv_general_dilated(x, p[name + "w"], (stride, stride), [(pad, pad), (pad, pad)])
    return out + p[name + "b"][None, :, None, None]


def plain(p, x):
    x = jax.nn.relu(conv(p, "a", x, pad=1))
    x = jax.nn.relu(conv(p, "b", x, stride=2))
    return x.reshape(len(x), -1) @ p["cw"] + p["cb"]


def residual(p, x):
    x = jax.nn.relu(conv(p, "a", x, pad=1))
    x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 1, 2, 2), (1, 1, 2, 2), "VALID")
    x = x + jax.nn.hard_swish(conv(p, "b", x, pad=1))
    x = jax.nn.relu(conv(p, "c", x))
    return x.mean((2, 3)) @ p["dw"] + p["db"]


def shapes(convolutions, dense):
    rng = np.random.default_rng(3)
    p = {}
    for name, shape in convolutions.items():
        p[name + "w"] = rng.normal(size=shape) * np.sqrt(2 / np.prod(shape[1:]))
        p[name + "b"] = np.zeros(shape[0])
    for name, shape in dense.items():
        p[name + "w"] = rng.normal(size=shape) * np.sqrt(1 / shape[0])
        p[name + "b"] = np.zeros(shape[1])
    return {k: jnp.float32(v) for k, v in p.items()}


def train(f, p):
    data, want = jnp.float32(x.reshape(-1, 1, 8, 8) / 16), jnp.asarray(y)

    @jax.jit
    def step(p, m, v, t, key):
        noisy = data + 0.05 * jax.random.normal(key, data.shape)

        def loss(p):
            logits = jax.nn.log_softmax(f(p, noisy))
            return -logits[jnp.arange(len(want)), want].mean() + 1e-4 * sum((w**2).sum() for w in p.values())

        g = jax.grad(loss)(p)
        m = {k: 0.9 * m[k] + 0.1 * g[k] for k in p}
        v = {k: 0.999 * v[k] + 0.001 * g[k] ** 2 for k in p}
        rate = 0.01 * 0.5 ** (t / 300)
        p = {k: p[k] - rate * (m[k] / (1 - 0.9**t)) / (jnp.sqrt(v[k] / (1 - 0.999**t)) + 1e-8) for k in p}
        return p, m, v

    m = v = {k: jnp.zeros_like(w) for k, w in p.items()}
    for t in range(1, 901):
        p, m, v = step(p, m, v, float(t), jax.random.key(t))
    right = (f(p, jnp.float32(held_x.reshape(-1, 1, 8, 8) / 16)).argmax(1) == jnp.asarray(held_y)).mean()
    print(f"{f.__name__}: {100 * right:.2f} % of the held-out digits")
    return {k: np.asarray(w) for k, w in p.items()}


def save(name, p, nodes):
    make = helper.make_node
    head = [
        make("Div", ["pixels", "white"], ["scaled"]),
        make("Reshape", ["scaled", "image"], ["a"]),
    ]
    tail = [
        make("Softmax", ["logits"], ["probabilities"], axis=1),
        make("ArgMax", ["logits"], ["digit"], axis=1, keepdims=0),
    ]
    tensors = [numpy_helper.from_array(np.float32(w), k) for k, w in p.items()]
    tensors += [numpy_helper.from_array(np.float32(16), "white"), numpy_helper.from_array(np.int64([-1, 1, 8, 8]), "image")]
    graph = helper.make_graph(
        head + nodes + tail,
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


make = helper.make_node
p = train(plain, shapes({"a": (8, 1, 3, 3), "b": (16, 8, 3, 3)}, {"c": (144, 10)}))
save("digits-conv", p, [
    make("Conv", ["a", "aw", "ab"], ["a1"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
    make("Relu", ["a1"], ["a2"]),
    make("Conv", ["a2", "bw", "bb"], ["b1"], kernel_shape=[3, 3], strides=[2, 2]),
    make("Relu", ["b1"], ["b2"]),
    make("Flatten", ["b2"], ["flat"]),
    make("Gemm", ["flat", "cw", "cb"], ["logits"]),
])
p = train(residual, shapes({"a": (8, 1, 3, 3), "b": (8, 8, 3, 3), "c": (24, 8, 3, 3)}, {"d": (24, 10)}))
save("digits-residual", p, [
    make("Conv", ["a", "aw", "ab"], ["a1"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
    make("Relu", ["a1"], ["a2"]),
    make("MaxPool", ["a2"], ["m"], kernel_shape=[2, 2], strides=[2, 2]),
    make("Conv", ["m", "bw", "bb"], ["b1"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
    make("HardSwish", ["b1"], ["b2"]),
    make("Add", ["m", "b2"], ["s"]),
    make("Conv", ["s", "cw", "cb"], ["c1"], kernel_shape=[3, 3]),
    make("Relu", ["c1"], ["c2"]),
    make("GlobalAveragePool", ["c2"], ["g"]),
    make("Flatten", ["g"], ["flat"]),
    make("Gemm", ["flat", "dw", "db"], ["logits"]),
])


class Digits(CalibrationDataReader):
    def __init__(self):
        rows = json.loads((HERE / "calibration.json").read_text())
        self.rows = iter([{"pixels": np.float32([row])} for row in rows])

    def get_next(self):
        return next(self.rows, None)


for form, kinds in [
    (QuantFormat.QDQ, (QuantType.QInt8, QuantType.QInt8)),
    (QuantFormat.QOperator, (QuantType.QUInt8, QuantType.QInt8)),
]:
    quantize_static(
        HERE / "digits-conv.onnx", HERE / f"digits-conv-{form.name.lower()}.onnx", Digits(), quant_format=form,
        activation_type=kinds[0], weight_type=kinds[1], op_types_to_quantize=["Conv", "Gemm", "MatMul", "Relu"],
        extra_options={"WeightSymmetric": True},
    )
