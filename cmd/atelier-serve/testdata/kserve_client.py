"""Uses a model server with kserve's inference clients, REST and gRPC, as they come."""

import asyncio
import sys

import numpy as np
from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest
from kserve.inference_client import RESTConfig

address = sys.argv[1]
x = np.array([[1, 2, 3, 4], [5, 6, 7, 8]], dtype=np.float32)


def request(binary):
    given = InferInput("x", list(x.shape), "FP32")
    given.set_data_from_numpy(x, binary_data=binary)
    return InferRequest(model_name="m", infer_inputs=[given], request_id="42")


def check(answer):
    outputs = {o.name: o.as_numpy() for o in answer.outputs}
    assert answer.id == "42" and (outputs["y"] == 2 * x + 1).all() and (outputs["z"] == -x).all(), outputs


async def rest():
    client = InferenceRESTClient(RESTConfig(protocol="v2", retries=0))
    base = f"http://{address}"
    assert await client.is_server_live(base) and await client.is_server_ready(base)
    assert await client.is_model_ready(base, "m")
    for binary in (False, True):
        check(await client.infer(base, request(binary), model_name="m"))
    await client.close()


async def grpc():
    client = InferenceGRPCClient(address)
    assert await client.is_server_live() and await client.is_server_ready()
    assert await client.is_model_ready("m")
    check(await client.infer(request(True)))
    await client.close()


asyncio.run(rest())
asyncio.run(grpc())
print("ok")
