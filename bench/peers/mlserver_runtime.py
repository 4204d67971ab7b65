"""Runtimes of MLServer for an ONNX model and for the scoring script."""

import os

import numpy as np
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceResponse


class Onnx(MLModel):
    async def load(self):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = int(os.environ["THREADS"])
        self.session = onnxruntime.InferenceSession(os.environ["MODEL"], options, providers=["CPUExecutionProvider"])
        self.names = [o.name for o in self.session.get_outputs()]
        return True

    async def predict(self, payload):
        # NumpyCodec makes a scalar's shape [] one of one element; the model has a scalar there.
        feeds = {i.name: NumpyCodec.decode_input(i).reshape(i.shape) for i in payload.inputs}
        outputs = self.session.run(self.names, feeds)
        return InferenceResponse(model_name=self.name, outputs=[NumpyCodec.encode_output(n, o) for n, o in zip(self.names, outputs)])


class Script(MLModel):
    async def load(self):
        import score

        self.score = score
        score.init()
        return True

    async def predict(self, payload):
        digits, p = self.score.score(NumpyCodec.decode_input(payload.inputs[0]))
        outputs = [NumpyCodec.encode_output("digit", digits), NumpyCodec.encode_output("probabilities", p)]
        return InferenceResponse(model_name=self.name, outputs=outputs)
