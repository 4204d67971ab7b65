"""FastAPI with ONNX Runtime behind Open Inference Protocol v2 in JSON, and the scoring script at /score."""

import os

import numpy as np
import orjson
from fastapi import FastAPI, Request, Response

app = FastAPI()

if "MODEL" in os.environ:
    import onnxruntime

    TYPES = {"FP32": np.float32, "INT64": np.int64}
    KINDS = {"float32": "FP32", "int64": "INT64"}
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = int(os.environ["THREADS"])
    session = onnxruntime.InferenceSession(os.environ["MODEL"], options, providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]

    @app.post("/v2/models/{model}/infer")
    async def infer(model: str, request: Request):
        body = orjson.loads(await request.body())
        feeds = {i["name"]: np.array(i["data"], dtype=TYPES[i["datatype"]]).reshape(i["shape"]) for i in body["inputs"]}
        outputs = [
            {"name": name, "datatype": KINDS[out.dtype.name], "shape": out.shape, "data": out.ravel()}
            for name, out in zip(names, session.run(names, feeds))
        ]
        answer = {"model_name": model, "outputs": outputs}
        return Response(orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY), media_type="application/json")

else:
    import score

    score.init()

    @app.post("/score")
    async def run(request: Request):
        return Response(orjson.dumps(score.run(await request.body())), media_type="application/json")


@app.get("/ready")
async def ready():
    return {}
