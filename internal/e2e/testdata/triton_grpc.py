"""Uses an endpoint with tritonclient.grpc as it comes, through the device's gateway."""

import json
import sys

import numpy as np
import tritonclient.grpc as triton

address, key, held_out = sys.argv[1:]
with open(held_out) as f:
    data = json.load(f)
pixels = np.array(data["pixels"], dtype=np.float32)
client = triton.InferenceServerClient(address)
for headers in ({"authorization": f"Bearer {key}", "atelier-endpoint": "digits"}, {"x-api-key": key}):
    assert client.is_server_live(headers=headers) and client.is_server_ready(headers=headers)
    assert client.is_model_ready("digits", headers=headers)
    model = client.get_model_metadata("digits", headers=headers, as_json=True)
    assert model["inputs"] == [{"name": "pixels", "datatype": "FP32", "shape": ["-1", "64"]}], model
    given = triton.InferInput("pixels", list(pixels.shape), "FP32")
    given.set_data_from_numpy(pixels)
    result = client.infer("digits", [given], request_id="42", headers=headers)
    assert result.get_response().id == "42"
    right = int((result.as_numpy("digit") == np.array(data["digits"])).sum())

for headers, says in (({"authorization": "Bearer wrong"}, "no valid key"), ({"x-api-key": "wrong", "atelier-endpoint": "digits"}, "key of endpoint digits")):
    try:
        client.get_model_metadata("digits", headers=headers)
        raise SystemExit("a wrong key was accepted")
    except triton.InferenceServerException as e:
        assert e.status() == "StatusCode.UNAUTHENTICATED" and says in e.message(), e

print(f"gRPC {right} of {len(pixels)}")
