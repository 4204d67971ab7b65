"""Uses a model server with tritonclient.grpc as it comes."""

import sys

import grpc
import numpy as np
import tritonclient.grpc as triton
from tritonclient.grpc import service_pb2, service_pb2_grpc

address = sys.argv[1]
client = triton.InferenceServerClient(address)
assert client.is_server_live() and client.is_server_ready()
assert client.is_model_ready("m") and client.is_model_ready("m", "1")
server = client.get_server_metadata(as_json=True)
assert server["name"] == "atelier-serve", server
model = client.get_model_metadata("m", as_json=True)
assert model["inputs"] == [{"name": "x", "datatype": "FP32", "shape": ["-1", "4"]}], model
assert [o["name"] for o in model["outputs"]] == ["y", "z"] and model["versions"] == ["1"], model

x = np.array([[1, 2, 3, 4], [5, 6, 7, 8]], dtype=np.float32)
given = triton.InferInput("x", list(x.shape), "FP32")
given.set_data_from_numpy(x)
result = client.infer("m", [given], request_id="42")
assert result.get_response().id == "42" and len(result.get_response().raw_output_contents) == 2
assert (result.as_numpy("y") == 2 * x + 1).all() and (result.as_numpy("z") == -x).all()
result = client.infer("m", [given], outputs=[triton.InferRequestedOutput("z")], client_timeout=20)
assert (result.as_numpy("z") == -x).all() and result.as_numpy("y") is None


def refused(code, call, *says):
    try:
        call()
    except triton.InferenceServerException as e:
        assert e.status() == f"StatusCode.{code}" and all(s in e.message() for s in says), e
    else:
        raise SystemExit(f"{code} was expected")


wrong = triton.InferInput("x", [1, 3], "FP32")
wrong.set_data_from_numpy(x[:1, :3])
refused("INVALID_ARGUMENT", lambda: client.infer("m", [wrong]), "inputs[0].shape", "[1 3]", "[-1 4]")
refused("NOT_FOUND", lambda: client.infer("other", [given]), '"m" is')
refused("NOT_FOUND", lambda: client.get_model_metadata("m", "2"), "version")
refused("UNIMPLEMENTED", lambda: client.get_inference_statistics(), "ModelInfer")

# Contents of their type, as other clients send them, by the generated stub.
stub = service_pb2_grpc.GRPCInferenceServiceStub(grpc.insecure_channel(address))
request = service_pb2.ModelInferRequest(model_name="m")
tensor = request.inputs.add(name="x", datatype="FP32", shape=[1, 4])
tensor.contents.fp32_contents.extend([1, 2, 3, 4])
answer = stub.ModelInfer(request)
assert [list(o.contents.fp32_contents) for o in answer.outputs] == [[3, 5, 7, 9], [-1, -2, -3, -4]], answer
large = service_pb2.ModelInferRequest(model_name="m")
large.inputs.add(name="x", datatype="FP32", shape=[1000, 4]).contents.fp32_contents.extend([0] * 4000)
assert list(stub.ModelInfer(large).outputs[0].contents.fp32_contents) == [1] * 4000
try:
    stub.ModelInfer(large, compression=grpc.Compression.Gzip)
    raise SystemExit("a compressed message was accepted")
except grpc.RpcError as e:
    assert e.code() == grpc.StatusCode.UNIMPLEMENTED, e

# A thousand calls on one connection, some at a time.
calls = [stub.ModelInfer.future(request) for _ in range(1000)]
assert all(list(c.result().outputs[0].contents.fp32_contents) == [3, 5, 7, 9] for c in calls)
print("ok")
