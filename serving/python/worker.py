"""Runs one Azure ML scoring script for atelier-serve: init() once, then run() for each request.

It talks to the pool that started it in frames (frame.go) on descriptor 3. What the script prints goes to the descriptors
that it was given, which the pool reads. It needs Python 3.7 and nothing beside the standard library.
"""

import faulthandler
import gc
import importlib.abc
import importlib.util
import inspect
import io
import json
import os
import resource
import socket
import struct
import sys
import time
import traceback
import types
import urllib.parse

VERSION, START, READY, FAILED, REQUEST, ANSWER = 1, 1, 2, 3, 4, 5
HEAD = struct.Struct("<BBHII")  # version, kind, number of the request, lengths of meta and body
MOST_TRACEBACK = 16 << 10
EXIT_FAILED = 70

# Where scripts import @rawhttp, AMLRequest and AMLResponse from. Environments without these packages get rawhttp.py's.
RAW_PACKAGES = ("azureml", "azureml.contrib", "azureml.contrib.services", "azureml_inference_server_http", "azureml_inference_server_http.api")
RAW_MODULES = tuple(p + m for p in ("azureml.contrib.services", "azureml_inference_server_http.api") for m in (".aml_request", ".aml_response"))


class Channel:
    """Frames on a socket."""

    def __init__(self, sock):
        self.sock = sock
        self.rest = b""  # received and not taken
        self.text, self.meta = b"{}", {}  # the last meta: most requests have the same

    def take(self, n):
        """Returns the next n bytes, None where the other side has closed."""
        if n <= len(self.rest):
            taken, self.rest = self.rest[:n], self.rest[n:]
            return taken
        whole = bytearray(n)
        have = len(self.rest)
        whole[:have] = self.rest
        self.rest = b""
        view = memoryview(whole)
        while have < n:
            if n - have < 1 << 16:  # what comes behind it is read with it
                piece = self.sock.recv(1 << 16)
                got = min(len(piece), n - have)
                view[have : have + got] = piece[:got]
                self.rest = piece[got:]
            else:
                got = self.sock.recv_into(view[have:])
            if not got:
                return None
            have += got
        return bytes(whole)

    def receive(self):
        """Returns kind, number, meta and body of the next frame, None where the other side has closed."""
        self.rest = rest = self.rest or self.sock.recv(1 << 16)
        head = rest[: HEAD.size] if len(rest) >= HEAD.size else self.take(HEAD.size)
        if head is None:
            return None
        version, kind, number, meta, body = HEAD.unpack(head)
        if version != VERSION:
            raise RuntimeError("a frame of version %d came, %d was expected" % (version, VERSION))
        middle, end = HEAD.size + meta, HEAD.size + meta + body
        if len(rest) >= end:  # mostly all of a frame comes at once
            meta, body, self.rest = rest[HEAD.size : middle], rest[middle:end], rest[end:]
        else:
            if len(rest) >= HEAD.size:
                self.rest = rest[HEAD.size :]
            meta, body = self.take(meta), self.take(body)
            if meta is None or body is None:
                return None
        if meta != self.text:
            self.text, self.meta = meta, json.loads(meta)
        return kind, number, self.meta, body

    def send(self, kind, meta, body=b"", number=0):
        if not isinstance(meta, bytes):
            meta = json.dumps(meta).encode()
        head = HEAD.pack(VERSION, kind, number, len(meta), len(body))
        if len(body) < 1 << 16:
            self.sock.sendall(head + meta + body)
        else:
            self.sock.sendall(head + meta)
            self.sock.sendall(body)


class RawFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports rawhttp.py under the names of Azure's packages. It stands last, so that those win where they are installed."""

    def __init__(self, source):
        self.source = source

    def find_spec(self, name, path=None, target=None):
        if name in RAW_PACKAGES or name in RAW_MODULES:
            return importlib.util.spec_from_loader(name, self, is_package=name in RAW_PACKAGES)
        return None

    def create_module(self, spec):
        return None

    def exec_module(self, module):
        if module.__name__ in RAW_MODULES:
            exec(compile(self.source, "atelier-rawhttp", "exec"), module.__dict__)


class Refused(Exception):
    """The request is not one that the script can be given."""

    def __init__(self, status, message, field=None):
        super().__init__(message)
        self.status, self.field = status, field


class ScriptError(Exception):
    """The script is not one that can be run."""


class Script:
    """A scoring script that is loaded."""

    def __init__(self, path):
        spec = importlib.util.spec_from_file_location("entry_module", path)
        if spec is None:
            raise ScriptError("%s is no Python file" % path)
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
        for name in "init", "run":
            if not callable(getattr(module, name, None)):
                raise ScriptError("%s has no function %s()" % (path, name))
        self.init, self.run = module.init, module.run
        driver = getattr(module, "driver_module", None)  # generated by some Azure tools; its run() is the script's
        if isinstance(driver, types.ModuleType) and hasattr(driver, "run"):
            self.run = driver.run
        self.schema = schema(self.run)
        self.raw = any(getattr(sys.modules.get(name), "_rawHttpRequested", False) for name in RAW_MODULES)
        parameters = list(inspect.signature(self.run).parameters.values())
        if any(p.kind not in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD) for p in parameters):
            raise ScriptError("run() must not have positional-only arguments, *args or **kwargs")
        self.headers = any(p.name == "request_headers" for p in parameters)
        self.parameters = [p for p in parameters if p.name != "request_headers"]
        if not self.parameters:
            raise ScriptError("run() has no argument for the data")
        if self.raw and self.schema:
            raise ScriptError("run() has both @rawhttp and @input_schema or @output_schema, one of them was expected")

    def about(self):
        """Returns what the pool should know of the script."""
        return {"raw": self.raw, "headers": self.headers or self.raw, "schema": self.schema}

    def arguments(self, meta, body):
        """Returns what run() is called with for a request."""
        if self.raw:
            arguments = {self.parameters[0].name: raw_request(meta, body)}
        elif self.schema:
            arguments = self.chosen(query(meta) if meta["method"] == "GET" else json_object(meta, body))
        elif meta["method"] == "GET":
            arguments = {self.parameters[0].name: json.dumps(query(meta))}
        else:
            try:
                arguments = {self.parameters[0].name: str(body, "utf-8")}
            except UnicodeDecodeError as e:
                raise Refused(400, "Input cannot be decoded as UTF-8: %s" % e) from None
        if self.headers:
            arguments["request_headers"] = dict(meta.get("headers") or ())
        return arguments

    def chosen(self, values):
        """Returns the values of run()'s arguments."""
        arguments = {}
        for p in self.parameters:
            arguments[p.name] = values.get(p.name, p.default)
            if arguments[p.name] is inspect.Parameter.empty:
                raise Refused(400, "A value is not provided for the %r parameter." % p.name)
        return arguments


def schema(run):
    """Returns the schemas that run is decorated with, None where there are none."""
    util = sys.modules.get("inference_schema.schema_util")
    if util is None or not util.is_schema_decorated(run):
        return None
    return {"input": util.get_input_schema(run), "output": util.get_output_schema(run), "versions": util.get_supported_versions(run)}


def query(meta):
    """Returns the arguments of a URL: JSON where they are that, lists where they come more than once."""

    def value(text):
        try:
            return json.loads(text)
        except ValueError:
            return text

    values = {}
    for name, text in urllib.parse.parse_qsl(meta.get("query", ""), keep_blank_values=True):
        values.setdefault(name, []).append(value(text))
    return {name: v[0] if len(v) == 1 else v for name, v in values.items()}


def json_object(meta, body):
    """Returns the JSON object that is the request's body."""
    kind = meta.get("type", "").split(";")[0].strip().lower()
    if kind != "application/json" and not (kind.startswith("application/") and kind.endswith("+json")):
        raise Refused(415, "Expects Content-Type to be application/json")
    if not body:
        raise Refused(400, "POST body is empty. Expecting a JSON dictionary.")
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as e:
        raise Refused(400, "POST body could not be decoded as JSON: %s" % e) from None
    if not isinstance(value, dict):
        raise Refused(400, "POST body should be a JSON dictionary.")
    return value


def raw_request(meta, body):
    """Returns the request object that @rawhttp asks for: Flask's where the script's packages bring Flask."""
    flask = sys.modules.get("flask")
    if flask is None:
        return next(m for m in map(sys.modules.get, RAW_MODULES) if hasattr(m, "AMLRequest")).AMLRequest(meta, body)
    environ = {
        "REQUEST_METHOD": meta["method"], "SCRIPT_NAME": "", "PATH_INFO": "/score", "QUERY_STRING": meta.get("query", ""),
        "SERVER_NAME": "localhost", "SERVER_PORT": "80", "SERVER_PROTOCOL": "HTTP/1.1",
        "wsgi.version": (1, 0), "wsgi.url_scheme": "http", "wsgi.input": io.BytesIO(body), "wsgi.input_terminated": True,
        "wsgi.errors": sys.stderr, "wsgi.multithread": False, "wsgi.multiprocess": True, "wsgi.run_once": False,
    }
    for name, value in meta.get("headers") or ():
        environ["HTTP_" + name.upper().replace("-", "_")] = value
    for name in "CONTENT_TYPE", "CONTENT_LENGTH":  # WSGI has them without the prefix
        value = environ.pop("HTTP_" + name, None)
        if value is not None:
            environ[name] = value
    environ["CONTENT_LENGTH"] = str(len(body))
    return flask.Request(environ)


def response(output):
    """Returns meta and body of the answer that output makes."""
    if hasattr(output, "get_data") and hasattr(output, "status_code") and hasattr(output, "headers"):
        return {"status": output.status_code, "headers": [[str(k), str(v)] for k, v in output.headers.items()]}, bytes(output.get_data())
    return {"status": 200}, json.dumps({} if output is None else output).encode()


def tell(e):
    """Returns an exception's type and message in a line, and its traceback without this file's part."""
    frames = e.__traceback__
    while frames is not None and frames.tb_frame.f_code.co_filename == __file__:
        frames = frames.tb_next
    try:
        line = "".join(traceback.format_exception_only(type(e), e)).strip().splitlines()[-1]
        text = "".join(traceback.format_exception(type(e), e, frames))
    except Exception:  # of the exception's own methods
        line = text = type(e).__name__
    return line[:1000], text[-MOST_TRACEBACK:]


def answer(script, meta, body):
    """Calls run() and returns meta and body of the answer."""
    failed = {"status": 500, "failed": True}
    begin = time.perf_counter()
    try:
        output = script.run(**script.arguments(meta, body))
    except Refused as e:
        return {"status": e.status, "message": str(e), "field": e.field}, b""
    except Exception as e:
        failed["error"], failed["traceback"] = tell(e)
        failed["raised"] = type(e).__name__
        return failed, b""
    took = (time.perf_counter() - begin) * 1000
    try:
        if type(output) is dict:  # what most scripts return needs no look
            return b'{"status": 200, "ms": %.6f}' % took, json.dumps(output).encode()
        meta, body = response(output)
    except Exception as e:
        failed["error"], failed["traceback"] = tell(e)
        failed["returned"] = type(output).__name__
        return failed, b""
    meta["ms"] = took
    return meta, body


def predictor(start, source):
    """Returns what answers for a model that has no script: the source is predictor.py's."""
    module = types.ModuleType("atelier_predictor")
    module.Refused, module.ScriptError = Refused, ScriptError
    sys.modules[module.__name__] = module
    exec(compile(source, "atelier-predictor", "exec"), module.__dict__)
    return module.load(start)


def flush():
    for stream in sys.stdout, sys.stderr:
        try:
            stream.flush()
        except Exception:  # the script may have closed or replaced it
            pass


def prepare():
    """Makes the process what a script expects."""
    faulthandler.enable()  # tells where a script hung, when the pool ends it with SIGABRT
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    for stream in sys.stdout, sys.stderr:
        stream.reconfigure(encoding="utf-8", errors="backslashreplace", line_buffering=True)
    import logging

    # logging.info() is heard without the script doing anything; what it configures itself is left alone.
    logging.getLogger().setLevel(logging.INFO)
    logging.lastResort = logging.StreamHandler()
    logging.lastResort.setFormatter(logging.Formatter("%(levelname)s:%(name)s:%(message)s"))


def load(channel, start, source):
    """Loads the script and calls init(). Returns None where that fails and the pool was told."""
    stage = "import"
    try:
        sys.meta_path.append(RawFinder(source))
        sys.path[:] = [p for p in sys.path if p]  # not the working directory
        if "script" in start:
            sys.path.append(os.path.dirname(os.path.abspath(start["script"])))
        os.register_at_fork(after_in_child=channel.sock.close)  # a child must not answer, even where it returns from run()
        if "predictor" in start:
            stage = "load"
            script = predictor(start["predictor"], source)
        else:
            script = Script(start["script"])
            stage = "init"
            script.init()
        gc.collect()
        gc.freeze()  # what was made stays: collections need not go over it again
        flush()
        channel.send(READY, script.about())
        return script
    except SystemExit as e:
        error = "SystemExit: %s" % e
    except ScriptError as e:
        stage, error = "contract", str(e)
        sys.stderr.write(error + "\n")
    except BaseException as e:
        error, text = tell(e)
        sys.stderr.write(text)
    flush()
    channel.send(FAILED, {"stage": stage, "error": error})
    return None


def main():
    if sys.version_info < (3, 7):
        sys.exit("Python %d.%d came, 3.7 or newer was expected" % sys.version_info[:2])
    sock = socket.socket(fileno=3)
    sock.set_inheritable(False)
    channel = Channel(sock)
    prepare()
    first = channel.receive()
    if first is None:
        return
    script = load(channel, first[2], first[3])
    if script is None:
        os._exit(EXIT_FAILED)  # threads of the script's may hold up any other end
    while True:
        request = channel.receive()
        if request is None:
            return
        _, number, meta, body = request
        request = None
        meta, body = answer(script, meta, body)
        flush()
        channel.send(ANSWER, meta, body, number)


main()
