"""Answers for a model that comes without a script of its own: an MLflow model, or an estimator in a pickle.

The worker executes this file with the names Refused and ScriptError in it, and calls load() once. Requests are tensors (TENSORS)
or what came for MLflow's /invocations. It needs what the model needs, which NumPy is always part of.
"""

import csv
import io
import json
import math
import os
import struct
import sys

import numpy

TENSORS = "application/x-atelier-tensors"
DTYPES = {
    "BOOL": "?", "UINT8": "<u1", "UINT16": "<u2", "UINT32": "<u4", "UINT64": "<u8", "INT8": "<i1", "INT16": "<i2", "INT32": "<i4", "INT64": "<i8",
    "FP16": "<f2", "FP32": "<f4", "FP64": "<f8",
}
LENGTH = struct.Struct("<I")


class Reply:
    """An answer as the worker sends it."""

    def __init__(self, status, kind, data):
        self.status_code, self.headers, self.data = status, {"Content-Type": kind}, data

    def get_data(self):
        return self.data


def datatype(array):
    """Returns the datatype of an array's elements in Open Inference Protocol's words."""
    if array.dtype.kind in "OSUT":
        return "BYTES"
    for name, dtype in DTYPES.items():
        if array.dtype == numpy.dtype(dtype):
            return name
    raise TypeError("the model returned elements of the type %s, which no datatype of Open Inference Protocol stands for" % array.dtype)


def read_tensors(body):
    """Returns the arrays of a request by their names, in its order."""
    (size,) = LENGTH.unpack_from(body)
    at = LENGTH.size + size
    arrays = {}
    for t in json.loads(body[LENGTH.size : at]):
        count = math.prod(t["shape"])
        if t["datatype"] == "BYTES":
            array = numpy.empty(count, dtype=object)
            for i in range(count):
                (size,) = LENGTH.unpack_from(body, at)
                at += LENGTH.size
                array[i] = body[at : at + size]
                at += size
        else:
            dtype = numpy.dtype(DTYPES[t["datatype"]])
            array = numpy.frombuffer(body, dtype, count, at).copy()  # models may write into what they are given
            at += count * dtype.itemsize
        arrays[t["name"]] = array.reshape(t["shape"])
    return arrays


def write_tensors(arrays):
    """Returns arrays, by their names, in the form that read_tensors reads."""
    head, parts = [], []
    for name, array in arrays.items():
        kind = datatype(array)
        head.append({"name": name, "datatype": kind, "shape": array.shape})
        if kind == "BYTES":
            for element in array.reshape(-1):
                text = element if isinstance(element, bytes) else str(element).encode()
                parts += [LENGTH.pack(len(text)), text]
        else:
            parts.append(numpy.ascontiguousarray(array, dtype=DTYPES[kind]).tobytes())
    head = json.dumps(head).encode()
    return b"".join([LENGTH.pack(len(head)), head] + parts)


def outputs_of(result, specs):
    """Returns what predict() returned as arrays by the names of the outputs, which specs name where they are known."""
    if hasattr(result, "columns") and hasattr(result, "items"):  # a pandas.DataFrame
        arrays = {str(name): column.to_numpy() for name, column in result.items()}
    elif isinstance(result, dict):
        arrays = {str(name): numpy.asarray(value) for name, value in result.items()}
    else:
        arrays = {"predictions": result.to_numpy() if hasattr(result, "to_numpy") else numpy.asarray(result)}
    if not specs:
        return arrays
    names = [s["name"] for s in specs]
    if len(arrays) != len(names):
        raise TypeError("the model returned %d outputs (%s), its signature has %d (%s)" % (len(arrays), ", ".join(arrays), len(names), ", ".join(names)))
    if set(arrays) != set(names):
        arrays = dict(zip(names, arrays.values()))
    return {s["name"]: cast(arrays[s["name"]], s) for s in specs}


def cast(array, spec):
    """Returns array with the elements that the signature promises."""
    kind = spec["datatype"]
    if kind == "BYTES":
        return array.astype(object)
    if array.dtype.kind == "O" or not numpy.can_cast(array.dtype, DTYPES[kind], "same_kind"):
        raise TypeError("output %s has elements of the type %s, the signature promises %s" % (spec["name"], array.dtype, kind))
    return array.astype(DTYPES[kind])


class Predictor:
    """What both kinds of models have in common."""

    platform = ""
    inputs = outputs = None

    def about(self):
        return {"predictor": {"platform": self.platform, "inputs": self.inputs, "outputs": self.outputs}}

    def arguments(self, meta, body):
        return {"meta": meta, "body": body}

    def run(self, meta, body):
        if meta.get("type") != TENSORS:
            return self.invocations(meta.get("type") or "application/json", body)
        return Reply(200, TENSORS, write_tensors(outputs_of(self.predict(read_tensors(body)), self.outputs)))

    def learn(self):
        """Runs the model once on zeros, which warms it, and learns its outputs where no signature has them."""
        zeros = {}
        for s in self.inputs:
            shape = [1 if d < 0 else d for d in s["shape"]]
            zeros[s["name"]] = numpy.full(shape, b"", dtype=object) if s["datatype"] == "BYTES" else numpy.zeros(shape, DTYPES[s["datatype"]])
        try:
            arrays = outputs_of(self.predict(zeros), self.outputs)
        except Exception as e:  # it takes other values only
            sys.stderr.write("the model does not take zeros, and starts cold: %s: %s\n" % (type(e).__name__, e))
            arrays = None
        if self.outputs is None and arrays is not None:
            self.outputs = [{"name": name, "datatype": datatype(a), "shape": [-1] + list(a.shape[1:])} for name, a in arrays.items()]
        if self.outputs is None:
            self.outputs = [{"name": "predictions", "datatype": "FP64", "shape": [-1]}]


class MLflow(Predictor):
    """An MLflow model with the flavor python_function."""

    platform = "mlflow_python_function"

    def __init__(self, start):
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # nobody asked for the device to call home
        try:
            import mlflow.pyfunc
            from mlflow.exceptions import MlflowException
            from mlflow.pyfunc import scoring_server
        except ImportError as e:
            raise ScriptError("the environment has no MLflow that could load the model: %s" % e) from None
        if not hasattr(scoring_server, "invocations"):
            raise ScriptError("the environment has MLflow %s, whose scoring server cannot be called: a newer one was expected" % mlflow.__version__)
        self.error, self.server = MlflowException, scoring_server
        self.model = mlflow.pyfunc.load_model(start["path"])
        self.schema = self.model.metadata.get_input_schema()
        self.inputs, self.outputs = start.get("inputs"), start.get("outputs")
        self.columns, self.datetimes, self.binaries = start.get("columns"), start.get("datetimes") or (), start.get("binaries") or ()
        if self.inputs is None:
            self.inputs = [{"name": "input", "datatype": "FP64", "shape": [-1, width(self.model)]}]
        self.learn()

    def predict(self, arrays):
        if self.columns:
            import pandas

            if len({len(array) for array in arrays.values()}) > 1:
                raise Refused(400, "the columns have unlike lengths: %s" % {name: len(array) for name, array in arrays.items()}, "inputs")
            data = pandas.DataFrame({name: self.column(name, array) for name, array in arrays.items()})
        else:
            arrays = {name: texts(array) if array.dtype == object else array for name, array in arrays.items()}
            data = arrays if len(arrays) > 1 or self.schema is not None and self.schema.has_input_names() else next(iter(arrays.values()))
        try:
            return self.model.predict(data)
        except self.error as e:
            raise Refused(e.get_http_status_code(), e.message) from None
        except (ValueError, TypeError) as e:
            raise Refused(400, "the model refuses the input: %s: %s" % (type(e).__name__, e)) from e

    def column(self, name, array):
        if array.dtype != object or name in self.binaries:
            return array
        if name in self.datetimes:
            import pandas

            try:
                return pandas.to_datetime(texts(array))
            except ValueError as e:
                raise Refused(400, "input %r holds what is no time: %s" % (name, e), "inputs") from None
        return texts(array)

    def invocations(self, kind, body):
        """Answers as `mlflow models serve` does, with its own code."""
        try:
            r = self.server.invocations(body, kind, self.model, self.schema)
        except self.error as e:
            said = json.loads(e.serialize_as_json())
            trace = said.pop("stack_trace", None)  # for whoever reads the log, not for whoever sent the request
            if trace:
                sys.stderr.write(trace)
            return Reply(e.get_http_status_code(), "application/json", json.dumps(said).encode())
        return Reply(r.status, r.mimetype, r.response.encode())


class Pickle(Predictor):
    """An estimator as joblib or pickle wrote it, with scikit-learn's predict()."""

    platform = "sklearn_pickle"

    def __init__(self, start):
        with open(start["path"], "rb") as f:
            try:
                import joblib

                self.model = joblib.load(f)
            except ImportError as e:
                if e.name != "joblib":
                    raise
                import pickle

                self.model = pickle.load(f)
        if not callable(getattr(self.model, "predict", None)):
            raise ScriptError("the file holds a %s, which has no predict()" % type(self.model).__name__)
        names = getattr(self.model, "feature_names_in_", None)
        self.names = None if names is None else [str(name) for name in names]
        self.inputs = [{"name": "input", "datatype": "FP64", "shape": [-1, width(self.model)]}]
        self.learn()

    def predict(self, arrays):
        data = arrays["input"]
        if self.names is not None and has_pandas():
            import pandas

            data = pandas.DataFrame(data, columns=self.names)
        try:
            return self.model.predict(data)
        except (ValueError, TypeError) as e:
            raise Refused(400, "the model refuses the input: %s: %s" % (type(e).__name__, e)) from e

    def invocations(self, kind, body):
        words = [word.strip().lower() for word in kind.split(";")]
        if any(word != "charset=utf-8" for word in words[1:]):
            raise Refused(415, "Content-Type is %r, at most charset=utf-8 was expected" % kind, "Content-Type")
        if words[0] == "text/csv":
            rows = self.of_csv(body)
        elif words[0] == "application/json":
            rows = self.of_json(body)
        else:
            raise Refused(415, "Content-Type is %r, application/json or text/csv was expected" % kind, "Content-Type")
        result = self.predict({"input": rows})
        result = result.to_numpy() if hasattr(result, "to_numpy") else numpy.asarray(result)
        return Reply(200, "application/json", json.dumps({"predictions": result.tolist()}).encode())

    def of_csv(self, body):
        try:
            lines = list(csv.reader(io.StringIO(str(body, "utf-8"))))
        except (UnicodeDecodeError, csv.Error) as e:
            raise Refused(400, "the body is no CSV: %s" % e) from None
        if not lines:
            raise Refused(400, "the body is empty, a line of column names was expected")
        rows = [[cell if cell != "" else "nan" for cell in line] for line in lines[1:] if line]
        return self.matrix(self.ordered(lines[0], rows, "the CSV"), "the CSV", True)

    def of_json(self, body):
        try:
            value = json.loads(body)
        except (ValueError, RecursionError) as e:
            raise Refused(400, "the body is no JSON: %s" % e) from None
        forms = ("dataframe_split", "dataframe_records", "instances", "inputs")
        came = [f for f in forms if isinstance(value, dict) and f in value]
        if len(came) != 1:
            raise Refused(400, "exactly one of %s was expected, %d came" % (", ".join(forms), len(came)))
        form, data = came[0], value[came[0]]
        if form == "dataframe_split":
            if not isinstance(data, dict) or not isinstance(data.get("data"), list):
                raise Refused(400, "dataframe_split.data is no list of rows", "dataframe_split.data")
            rows = data["data"]
            return self.matrix(self.ordered(data["columns"], rows, form) if data.get("columns") else rows, form)
        if form == "inputs" and isinstance(data, dict):
            lengths = {name: len(values) if isinstance(values, list) else -1 for name, values in data.items()}
            if len(set(lengths.values())) > 1 or -1 in lengths.values():
                raise Refused(400, "inputs has columns of unlike lengths: %s" % lengths, form)
            return self.matrix(self.ordered(list(data), [list(row) for row in zip(*data.values())], form), form)
        if not isinstance(data, list):
            raise Refused(400, "%s is no list of rows" % form, form)
        if data and isinstance(data[0], dict):
            columns = list(data[0])
            for i, row in enumerate(data):
                if not isinstance(row, dict) or set(row) != set(columns):
                    raise Refused(400, "%s[%d] has other columns than %s[0], which has %s" % (form, i, form, columns), form)
            return self.matrix(self.ordered(columns, [[row[c] for c in columns] for row in data], form), form)
        if form == "dataframe_records" and data:
            raise Refused(400, "dataframe_records[0] is no object", form)
        return self.matrix(data, form)

    def ordered(self, columns, rows, field):
        """Returns rows with their columns in the model's order."""
        if not isinstance(columns, list):
            raise Refused(400, "%s has columns that are no list" % field, field)
        for i, row in enumerate(rows):
            if not isinstance(row, list) or len(row) != len(columns):
                raise Refused(400, "row %d of %s has not a value for each of the %d columns" % (i, field, len(columns)), field)
        if self.names is None or not all(isinstance(c, str) for c in columns):
            return rows  # by their order
        missing, more = [n for n in self.names if n not in columns], [c for c in columns if c not in self.names]
        if missing or len(columns) != len(self.names):
            raise Refused(400, "%s lacks the columns %s and has %s besides; the model takes %s" % (field, missing, more, self.names), field)
        order = [columns.index(n) for n in self.names]
        return [[row[i] for i in order] for row in rows]

    def matrix(self, rows, field, text=False):
        """Returns rows as the model takes them."""
        wide = self.inputs[0]["shape"][1]
        for i, row in enumerate(rows):
            if not isinstance(row, list) or wide >= 0 and len(row) != wide or len(row) != len(rows[0]):
                raise Refused(400, "row %d of %s is %.80r, a list of %d numbers was expected" % (i, field, row, wide if wide >= 0 else len(rows[0])), field)
            for j, cell in enumerate(row):
                if text:
                    try:
                        row[j] = float(cell)
                        continue
                    except ValueError:
                        pass
                elif cell is None:
                    row[j] = math.nan
                    continue
                elif isinstance(cell, (int, float)):
                    continue
                name = repr(self.names[j]) if self.names is not None else j
                raise Refused(400, "row %d of %s has %.80r in column %s, a number was expected" % (i, field, cell, name), field)
        return numpy.array(rows, dtype="<f8").reshape(len(rows), len(rows[0]) if rows else max(wide, 0))


def has_pandas():
    try:
        import pandas  # noqa: F401
    except ImportError:
        return False
    return True


def texts(array):
    """Returns an array of bytes as one of strings."""
    try:
        flat = [element.decode() if isinstance(element, bytes) else element for element in array.reshape(-1)]
    except UnicodeDecodeError as e:
        raise Refused(400, "an input holds what is no UTF-8: %s" % e, "inputs") from None
    out = numpy.empty(len(flat), dtype=object)
    out[:] = flat
    return out.reshape(array.shape)


def width(model):
    """Returns how many columns an estimator was fitted with, -1 where nobody knows."""
    for attempt in model, getattr(getattr(model, "_model_impl", None), "sklearn_model", None):
        n = getattr(attempt, "n_features_in_", None)
        if isinstance(n, int):
            return n
    return -1


def load(start):
    """Loads the model that the pool names."""
    return MLflow(start) if start["kind"] == "mlflow" else Pickle(start)
