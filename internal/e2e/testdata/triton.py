"""Uses an endpoint with tritonclient as it comes: metadata, then inference with binary and with JSON tensors."""

import json
import sys

import numpy as np
import tritonclient.http as triton

address, key, held_out = sys.argv[1:]
headers = {"Authorization": f"Bearer {key}"}
client = triton.InferenceServerClient(address)

assert client.is_server_live(headers=headers) and client.is_server_ready(headers=headers)
assert client.is_model_ready("digits", headers=headers)
server = client.get_server_metadata(headers=headers)
assert "binary_tensor_data" in server["extensions"], server
model = client.get_model_metadata("digits", headers=headers)
assert model["inputs"] == [{"name": "pixels", "datatype": "FP32", "shape": [-1, 64]}], model
assert {o["name"]: (o["datatype"], o["shape"]) for o in model["outputs"]} == {
    "probabilities": ("FP32", [-1, 10]), "digit": ("INT64", [-1])}, model

with open(held_out) as f:
    data = json.load(f)
pixels = np.array(data["pixels"], dtype=np.float32)
right = {}
for binary in (True, False):
    given = triton.InferInput("pixels", list(pixels.shape), "FP32")
    given.set_data_from_numpy(pixels, binary_data=binary)
    wanted = [triton.InferRequestedOutput("digit", binary_data=binary),
              triton.InferRequestedOutput("probabilities", binary_data=binary)]
    # The client writes into the headers that it is given, so each call gets its own.
    result = client.infer("digits", [given], outputs=wanted, request_id="42", headers=dict(headers))
    assert result.get_response()["id"] == "42"
    digits = result.as_numpy("digit")
    probabilities = result.as_numpy("probabilities")
    assert probabilities.shape == (len(pixels), 10) and (probabilities.argmax(axis=1) == digits).all()
    right[binary] = int((digits == np.array(data["digits"])).sum())

try:
    client.get_model_metadata("digits", headers={"Authorization": "Bearer wrong"})
    raise SystemExit("a wrong key was accepted")
except triton.InferenceServerException as e:
    assert e.status() == "401", e

print(f"binary {right[True]} of {len(pixels)}, JSON {right[False]} of {len(pixels)}")
