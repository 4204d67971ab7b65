package python

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	atelier "github.com/atelier-edge/atelier"
)

// healthy checks that the health of a script is answered at once.
func (b *bench) healthy() {
	b.Helper()
	begin := time.Now()
	if a := b.do(http.MethodGet, "/v2/health/ready", ""); a.status != 200 {
		b.Errorf("readiness is answered with %d %s", a.status, a.body)
	}
	if took := time.Since(begin); took > 5*time.Second {
		b.Errorf("readiness was answered after %v", took)
	}
}

func TestHangsInInit(t *testing.T) {
	t.Parallel()
	e := scriptError(t, `
import time
def init():
    print("waits for its licence")
    time.sleep(1000)
def run(data): pass
`, Options{InitTimeout: 2 * time.Second})
	if e.Message != "init() did not return within 2s" {
		t.Errorf("the message is %q", e.Message)
	}
	// It says where it hung, too.
	if !strings.Contains(e.Output, "waits for its licence") || !strings.Contains(e.Output, "score.py\", line 5 in init") {
		t.Errorf("the output is %q", e.Output)
	}
}

// Output without end neither fills log nor memory, and its beginning and its end
// are told.
func TestPrintsWithoutEnd(t *testing.T) {
	t.Parallel()
	size := 1 << 30
	if testing.Short() {
		size = 64 << 20
	}
	script := fmt.Sprintf(`
import os
def flood():
    chunk = b"x" * (1 << 16) if mode == "line" else (b"y" * 63 + b"\n") * 1024
    print("first", flush=True)
    for _ in range(%d // len(chunk)): os.write(1, chunk)
    print("\nlast", flush=True)
mode = "line"
`, size)
	t.Run("in run", func(t *testing.T) {
		t.Parallel()
		b := serve(t, script+`
def init(): pass
def run(data):
    global mode
    mode = data
    flood()
    raise ValueError("after all that")
`, Options{})
		for _, mode := range []string{"line", "lines"} {
			b.score(mode, 500, "")
		}
		b.healthy()
		if n := len(b.log.String()); n > 3<<20 {
			t.Errorf("the log has %d bytes", n)
		}
		for _, text := range []string{"msg=first", "the script printed more than is logged", "ValueError: after all that"} {
			if !strings.Contains(b.log.String(), text) {
				t.Errorf("the log lacks %q", text)
			}
		}
	})
	t.Run("in init", func(t *testing.T) {
		t.Parallel()
		e := scriptError(t, script+`
def init():
    flood()
    raise ValueError("after all that")
def run(data): pass
`, Options{})
		if len(e.Output) > 8<<10 || !strings.HasPrefix(e.Output, "first\n") || !strings.HasSuffix(e.Output, "ValueError: after all that") || !strings.Contains(e.Output, "bytes left out") {
			t.Errorf("the output has %d bytes: %.300q … %q", len(e.Output), e.Output, e.Output[max(0, len(e.Output)-300):])
		}
	})
}

func TestEndsInRun(t *testing.T) {
	t.Parallel()
	b := serve(t, `
import os, sys
def init(): pass
def run(data):
    if data == "exit": sys.exit(3)
    if data == "hard": os._exit(5)
    if data == "kill": os.kill(os.getpid(), 9)
    if data == "segv": os.kill(os.getpid(), 11)
    if data == "close": os.closerange(3, 100)
    if data == "noise":
        import socket
        socket.socket(fileno=3).sendall(b"noise" * 100)
    return os.getpid()
`, Options{})
	for data, says := range map[string]string{
		"exit": "the script exited with 3 in run()", "hard": "the script exited with 5 in run()",
		"kill": `the script was ended by signal "killed" in run()`, "segv": `the script was ended by signal "segmentation fault" in run()`,
		"close": "in run()", "noise": "the script broke off its talk with the server",
	} {
		a := b.score(data, 502, "")
		if e := a.says(t); !strings.Contains(e.Message, says) || !strings.Contains(e.Error, says) || e.Code != atelier.Unavailable || e.Remedy == "" {
			t.Errorf("%s is answered with %+v", data, e)
		}
		b.healthy()
		b.score("next", 200, "") // by a new worker
	}
	if !strings.Contains(b.log.String(), "Segmentation fault") {
		t.Error("the log does not tell where it ended")
	}
}

func TestDeadlocks(t *testing.T) {
	t.Parallel()
	b := serve(t, `
import threading
lock = threading.Lock()
def init(): pass
def run(data):
    lock.acquire()
    if data == "dead": lock.acquire()
    lock.release()
    return data
`, Options{Deadline: 2 * time.Second})
	b.score("fine", 200, "")
	answered := make(chan answer)
	go func() {
		a, err := b.try(http.MethodPost, "/score", "dead")
		if err != nil {
			t.Error(err)
		}
		answered <- a
	}()
	eventually(t, "a request hangs", func() bool { return len(b.idle()) == 0 })
	b.healthy() // meanwhile
	a := <-answered
	if e := a.says(t); a.status != 504 || !strings.Contains(e.Message, "did not answer within 2s") || e.Code != atelier.Timeout {
		t.Errorf("it is answered with %d %+v", a.status, e)
	}
	if !strings.Contains(b.log.String(), "line 7 in run") {
		t.Error("the log does not tell where it hung")
	}
	eventually(t, "a new worker answers", func() bool {
		a, err := b.try(http.MethodPost, "/score", "again")
		return err == nil && a.status == 200
	})
}

func (b *bench) idle() []*worker {
	b.pool.mu.Lock()
	defer b.pool.mu.Unlock()
	return append([]*worker(nil), b.pool.idle...)
}

func TestLeaks(t *testing.T) {
	t.Parallel()
	b := serve(t, `
import os, time
kept = []
def init(): pass
def run(data):
    kept.append(b"x" * (int(data) << 20))
    end = time.monotonic() + (20 if int(data) > 300 else 0)
    while time.monotonic() < end: time.sleep(0.01)
    return os.getpid()
`, Options{Memory: 200 << 20})
	first := b.score("1", 200, "").body
	if got := b.score("250", 200, "").body; got != first {
		t.Errorf("process %s answered, %s did before", got, first)
	}
	eventually(t, "the worker is replaced", func() bool { return b.score("1", 200, "").body != first })
	a := b.score("700", 502, "")
	if e := a.says(t); !strings.Contains(e.Message, "twice its limit of") {
		t.Errorf("it is answered with %+v", e)
	}
	b.score("1", 200, "")
}

func TestIsReplacedAfterSoManyRequests(t *testing.T) {
	t.Parallel()
	b := serve(t, `
import atexit, os
def init(): atexit.register(lambda: print("takes its leave", flush=True))
def run(data): return os.getpid()
`, Options{Requests: 3})
	var pids []string
	for range 6 {
		pids = append(pids, b.score("", 200, "").body)
	}
	if pids[0] != pids[2] || pids[2] == pids[3] || pids[3] != pids[5] {
		t.Errorf("the requests were answered by %v", pids)
	}
	eventually(t, "the worker ends as programs do", func() bool { return strings.Contains(b.log.String(), "takes its leave") })
}

// What a script starts ends with it.
func TestChildren(t *testing.T) {
	t.Parallel()
	b := serve(t, `
import multiprocessing, os, subprocess, sys, time
def init(): pass
def wait(): time.sleep(1000)
def run(data):
    forked = multiprocessing.get_context("fork").Process(target=wait)
    forked.start()
    command = subprocess.Popen(["sleep", "1000"])
    with open(data, "w") as f: f.write("%d %d" % (forked.pid, command.pid))
    os._exit(1)
`, Options{})
	path := filepath.Join(b.dir, "pids")
	body, err := json.Marshal(path)
	if err != nil {
		t.Fatal(err)
	}
	b.score(strings.Trim(string(body), `"`), 502, "")
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, field := range strings.Fields(string(text)) {
		pid, err := strconv.Atoi(field)
		if err != nil {
			t.Fatal(err)
		}
		eventually(t, "process "+field+" is gone", func() bool { return !alive(pid) })
	}
}

// A child that returns from run() as well answers nothing.
func TestForksInRun(t *testing.T) {
	t.Parallel()
	b := serve(t, `
import os
def init(): pass
def run(data):
    if data == "fork" and os.fork() == 0: return "the child"
    return data
`, Options{})
	for i := range 10 {
		b.score("fork", 200, `"fork"`)
		b.score(strconv.Itoa(i), 200, fmt.Sprintf(`"%d"`, i))
	}
}

// An answer that belongs to no request is given to none.
func TestAnswersTwice(t *testing.T) {
	t.Parallel()
	b := serve(t, `
import socket, struct
def init(): pass
def run(data):
    if data == "twice":
        socket.socket(fileno=3).sendall(struct.pack("<BBHII", 1, 5, 1, 14, 7) + b'{"status": 200}'[:14] + b'"first"')
    return data
`, Options{})
	b.score("twice", 502, "")
	b.score("next", 200, `"next"`)
}

// Of the requests under way when workers are killed only those fail that were in
// them.
func TestKilledUnderLoad(t *testing.T) {
	t.Parallel()
	b := serve(t, `
import time
def init(): pass
def run(data):
    time.sleep(0.002)
    return data
`, Options{Workers: 2})
	const kills, clients = 6, 8
	var good, bad atomic.Int64
	stop := make(chan struct{})
	var group sync.WaitGroup
	for c := range clients {
		group.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				text := fmt.Sprintf("%d-%d", c, i)
				a, err := b.try(http.MethodPost, "/score", text)
				switch {
				case err != nil:
					t.Error(err)
				case a.status == 200 && a.body == `"`+text+`"`:
					good.Add(1)
				case a.status == 502 && strings.Contains(a.body, "was ended by signal"):
					bad.Add(1)
				default:
					t.Errorf("%s was answered with %d %s", text, a.status, a.body)
				}
			}
		})
	}
	for range kills {
		before := good.Load()
		eventually(t, "more requests are answered", func() bool { return good.Load() > before+50 })
		workers := b.pool.all()
		if err := syscall.Kill(workers[0].cmd.Process.Pid, syscall.SIGKILL); err != nil {
			t.Log(err) // it was on its way out
		}
		<-workers[0].ended
	}
	close(stop)
	group.Wait()
	if n := bad.Load(); n > kills {
		t.Errorf("%d requests failed over %d kills", n, kills)
	}
}

// More requests than may wait are turned away, those that wait too long as well,
// and a client that gives up costs nothing.
func TestQueue(t *testing.T) {
	t.Parallel()
	b := serve(t, `
import time
def init(): pass
def run(data):
    time.sleep(float(data))
    return data
`, Options{Queue: 2, Deadline: 20 * time.Second})
	results := make(chan answer, 3)
	for range 3 {
		go func() {
			a, err := b.try(http.MethodPost, "/score", "1")
			if err != nil {
				t.Error(err)
			}
			results <- a
		}()
	}
	waiting := func(n int) func() bool {
		return func() bool {
			b.pool.mu.Lock()
			defer b.pool.mu.Unlock()
			return len(b.pool.waiting) == n
		}
	}
	eventually(t, "two requests wait", waiting(2))
	a := b.score("0", 429, "")
	if e := a.says(t); a.header.Get("Retry-After") == "" || !strings.Contains(e.Message, "2 requests wait") {
		t.Errorf("it is answered with %v %+v", a.header, e)
	}
	b.healthy()
	for range 3 {
		if a := <-results; a.status != 200 {
			t.Errorf("a request that waited is answered with %d %s", a.status, a.body)
		}
	}

	busy := make(chan answer, 1)
	go func() {
		a, err := b.try(http.MethodPost, "/score", "1")
		if err != nil {
			t.Error(err)
		}
		busy <- a
	}()
	eventually(t, "the worker is busy", func() bool { return len(b.idle()) == 0 })
	ctx, giveUp := context.WithCancel(t.Context())
	gone := make(chan error, 1)
	go func() {
		_, err := b.pool.Do(ctx, &Request{Method: "POST", Body: []byte("0")})
		gone <- err
	}()
	eventually(t, "a request waits", waiting(1))
	giveUp()
	if err := <-gone; atelier.CodeOf(err) != atelier.Timeout {
		t.Errorf("a client that gave up got %v", err)
	}
	if a := <-busy; a.status != 200 {
		t.Errorf("the one before is answered with %d", a.status)
	}
	b.score("0", 200, "")
}

// While a script is started again requests wait, and health is as before.
func TestIsStartedAgain(t *testing.T) {
	t.Parallel()
	b := serve(t, `
import os, time
def init():
    mark = os.path.join(os.environ["AZUREML_MODEL_DIR"], "mark")
    while os.path.exists(mark): time.sleep(0.01)
    open(mark, "w").close()
def run(data):
    if data == "end": os._exit(1)
    return data
`, Options{Deadline: 2 * time.Second})
	b.score("end", 502, "")
	b.healthy()
	a := b.score("one", 503, "")
	if e := a.says(t); !strings.Contains(e.Error, "is being started again") || a.header.Get("Retry-After") == "" {
		t.Errorf("it is answered with %v %+v", a.header, e)
	}
	answered := make(chan answer)
	go func() {
		a, err := b.try(http.MethodPost, "/score", "two")
		if err != nil {
			t.Error(err)
		}
		answered <- a
	}()
	if err := os.Remove(filepath.Join(b.dir, "mark")); err != nil {
		t.Fatal(err)
	}
	if a := <-answered; a.status != 200 && a.status != 503 {
		t.Errorf("a request that waited is answered with %d %s", a.status, a.body)
	}
	eventually(t, "it answers", func() bool {
		a, err := b.try(http.MethodPost, "/score", "three")
		return err == nil && a.status == 200
	})
}

// A script that works at first and then cannot be started any more ends the pool,
// with its reason.
func TestCannotBeStartedAnyMore(t *testing.T) {
	t.Parallel()
	b := serve(t, `
import os
def init():
    mark = os.path.join(os.environ["AZUREML_MODEL_DIR"], "mark")
    if os.path.exists(mark): raise RuntimeError("no second time")
    open(mark, "w").close()
def run(data): os._exit(1)
`, Options{})
	b.score("", 502, "")
	select {
	case <-b.pool.Failed():
	case <-time.After(60 * time.Second):
		t.Fatal("the pool never gave up")
	}
	if err := b.pool.Reason(); !strings.Contains(err.Error(), "init() failed: RuntimeError: no second time") {
		t.Errorf("the reason is %v", err)
	}
	b.score("", 503, "")
}

func TestNoInterpreter(t *testing.T) {
	t.Parallel()
	pool, _, _, err := begin(t, "", Options{Python: "/nowhere/python3"})
	if err == nil {
		pool.Close()
		t.Fatal("it was started")
	}
	if atelier.CodeOf(err) != atelier.Unavailable || !strings.Contains(err.Error(), "/nowhere/python3 cannot be started") {
		t.Errorf("it failed with %v", err)
	}
}
