"""What azureml.contrib.services and azureml_inference_server_http.api give to scripts, for environments without them.

AMLRequest has the part of Flask's Request that scripts use, AMLResponse that of Flask's Response. Forms with files
need the real ones: add azureml-inference-server-http to the environment.
"""

import io
import json as _json
import urllib.parse

_rawHttpRequested = False


def rawhttp(func):
    """Has run() called with the request itself, an AMLRequest."""
    global _rawHttpRequested
    _rawHttpRequested = True
    return func


class Fields:
    """Pairs of names and values; names may repeat, and are compared by key(name)."""

    def __init__(self, pairs=(), key=str):
        self._pairs = [(str(n), str(v)) for n, v in pairs]
        self._key = key

    def getlist(self, name):
        return [v for n, v in self._pairs if self._key(n) == self._key(name)]

    get_all = getlist

    def get(self, name, default=None, type=None):
        for value in self.getlist(name):
            try:
                return value if type is None else type(value)
            except ValueError:
                break
        return default

    def __getitem__(self, name):
        for value in self.getlist(name):
            return value
        raise KeyError(name)

    def __contains__(self, name):
        return bool(self.getlist(name))

    def add(self, name, value):
        self._pairs.append((str(name), str(value)))

    def remove(self, name):
        self._pairs = [(n, v) for n, v in self._pairs if self._key(n) != self._key(name)]

    __delitem__ = remove

    def __setitem__(self, name, value):
        self.remove(name)
        self.add(name, value)

    def setdefault(self, name, value):
        if name not in self:
            self.add(name, value)
        return self[name]

    def update(self, other):
        for name, value in dict(other).items():
            self[name] = value

    def items(self):
        return iter(self._pairs)

    def keys(self):
        return iter(dict.fromkeys(n for n, _ in self._pairs))

    __iter__ = keys

    def values(self):
        return (v for _, v in self._pairs)

    def to_dict(self):
        return {n: self[n] for n in self.keys()}

    def __len__(self):
        return len(self._pairs)

    def __repr__(self):
        return "Fields(%r)" % (self._pairs,)


class Headers(Fields):
    """Header fields, whose names are compared without case."""

    def __init__(self, pairs=()):
        super().__init__(pairs, key=str.lower)

    def add_header(self, name, value):
        self.add(name, value)


class AMLRequest:
    """One HTTP request."""

    def __init__(self, meta=None, body=b""):
        meta = meta or {}
        self.method = meta.get("method", "GET")
        self.path = "/score"
        query = meta.get("query", "")
        self.query_string = query.encode("latin-1", "replace")
        self.full_path = self.path + "?" + query
        self.args = Fields(urllib.parse.parse_qsl(query, keep_blank_values=True))
        self.headers = Headers(meta.get("headers") or ())
        self.url = "http://" + self.headers.get("Host", "localhost") + self.path + ("?" + query if query else "")
        self.content_type = self.headers.get("Content-Type")
        self.content_length = len(body)
        self._body = bytes(body)

    @property
    def mimetype(self):
        return (self.content_type or "").split(";")[0].strip().lower()

    @property
    def is_json(self):
        kind = self.mimetype
        return kind == "application/json" or kind.startswith("application/") and kind.endswith("+json")

    def get_data(self, cache=True, as_text=False, parse_form_data=False):
        return self._body.decode("utf-8", "replace") if as_text else self._body

    @property
    def data(self):
        return self._body

    @property
    def stream(self):
        return io.BytesIO(self._body)

    def get_json(self, force=False, silent=False, cache=True):
        if not force and not self.is_json:
            if silent:
                return None
            raise ValueError("the request's Content-Type is %r, application/json was expected" % (self.content_type,))
        try:
            return _json.loads(self._body)
        except ValueError:
            if silent:
                return None
            raise

    @property
    def json(self):
        return self.get_json()

    @property
    def form(self):
        if self.mimetype == "application/x-www-form-urlencoded":
            return Fields(urllib.parse.parse_qsl(self.get_data(as_text=True), keep_blank_values=True))
        return Fields(self._no_multipart())

    @property
    def files(self):
        return Fields(self._no_multipart())

    def _no_multipart(self):
        if self.mimetype == "multipart/form-data":
            raise NotImplementedError("forms with files need azureml-inference-server-http in the script's environment")
        return ()

    @property
    def values(self):
        return Fields(list(self.args.items()) + list(self.form.items()))


class AMLResponse:
    """One HTTP response: message as it is, or as JSON; None is an empty object."""

    def __init__(self, message, status_code, response_headers={}, json_str=False, run_function_failed=False):
        self.status_code = int(status_code)
        self.headers = Headers()
        if message is None or json_str:
            self.set_data(_json.dumps({} if message is None else message))
            self.headers["Content-Type"] = "application/json"
        else:
            self.set_data(message if isinstance(message, (str, bytes, bytearray)) else b"".join(map(_as_bytes, message)))
            if not any(name.lower() == "content-type" for name in response_headers):
                self.headers["Content-Type"] = "text/html; charset=utf-8"
        self.headers["x-ms-run-function-failed"] = run_function_failed
        for name, value in response_headers.items():
            for part in value.split(","):  # several of one name come with commas between them
                self.headers.add_header(name, part.strip())

    def set_data(self, value):
        self._body = _as_bytes(value)

    def get_data(self, as_text=False):
        return self._body.decode() if as_text else self._body

    data = property(get_data, set_data)

    @property
    def status(self):
        return str(self.status_code)

    @property
    def content_type(self):
        return self.headers.get("Content-Type")

    mimetype = content_type


def _as_bytes(value):
    return value.encode() if isinstance(value, str) else bytes(value)
