package python

import (
	"bufio"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/serving/direct"
)

//go:embed worker.py
var workerSource []byte

//go:embed rawhttp.py
var rawSource []byte

// bootstrap runs the worker's source, which comes on descriptor 4: nothing of it
// lies on the disk.
const bootstrap = `import os; exec(compile(os.fdopen(4, "rb").read(), "atelier-worker", "exec"), {"__name__": "atelier_worker", "__file__": "atelier-worker"})`

// lastWords is how long a process that is ended may take to say where it hung.
const lastWords = 500 * time.Millisecond

// leaveTime is how long a worker may take to leave on its own.
const leaveTime = 2 * time.Second

// about is what a worker says of its script.
type about struct {
	Raw     bool    `json:"raw"`     // run() takes the request itself, with any method
	Headers bool    `json:"headers"` // run() is given the request's header fields
	Schema  *schema `json:"schema"`  // nil where run() is not decorated
	// Predictor is what a model without a script takes and gives; nil where there is one.
	Predictor *aboutPredictor `json:"predictor"`
}

// worker is one process with the script.
type worker struct {
	name   int // which of the pool's
	cmd    *exec.Cmd
	conn   *net.UnixConn
	direct *direct.Conn // reads and writes conn
	reader *bufio.Reader
	out    *output
	about  about
	number uint16 // of the last request; of whoever has the worker

	ended chan struct{} // closed when the process is gone, with all that it started
	how   string        // how it ended; to be read after ended

	answered atomic.Int64
	ready    atomic.Bool // init() has returned
	heavy    atomic.Bool // over its memory limit

	mu    sync.Mutex
	cause string // why we ended it, "" where we did not
}

// spawn starts the process. It must be called on the pool's starting thread, with
// whose end the kernel ends the process.
func (p *Pool) spawn(name int) (*worker, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("make a socket: %w", err)
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "worker"), os.NewFile(uintptr(pair[1]), "pool")
	defer theirs.Close()
	defer ours.Close() // FileConn has its own
	conn, err := net.FileConn(ours)
	if err != nil {
		return nil, fmt.Errorf("make a socket: %w", err)
	}
	printed, prints, err := os.Pipe()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("make a pipe: %w", err), conn.Close())
	}
	defer prints.Close()
	source, sourceEnd, err := os.Pipe()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("make a pipe: %w", err), conn.Close(), printed.Close())
	}
	defer source.Close()

	frames, err := direct.New(conn)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("make a socket: %w", err), conn.Close(), printed.Close(), sourceEnd.Close())
	}
	cmd := exec.Command(p.opts.Python, "-c", bootstrap)
	cmd.ExtraFiles = []*os.File{theirs, source}
	cmd.Stdout, cmd.Stderr = prints, prints
	cmd.Env = os.Environ()
	if p.opts.Predictor == nil {
		cmd.Env = append(cmd.Env, "AZUREML_MODEL_DIR="+p.opts.ModelDir, "AZUREML_ENTRY_SCRIPT="+p.opts.Script)
	}
	// A group of its own: what ends the module politely must not end a request in
	// progress, and what the script starts is ended with it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	err = cmd.Start()
	if err == nil {
		_, err = sourceEnd.Write(workerSource) // it fits the pipe
	}
	err = errors.Join(err, sourceEnd.Close())
	w := &worker{
		name: name, cmd: cmd, conn: conn.(*net.UnixConn), direct: frames, reader: bufio.NewReaderSize(frames, 32<<10),
		ended: make(chan struct{}), out: newOutput(printed, p.opts.Log.With("worker", name)),
	}
	if cmd.Process == nil {
		return nil, errors.Join(err, conn.Close(), printed.Close())
	}
	go w.out.read()
	go w.wait()
	if err != nil {
		w.end("its program could not be handed over", syscall.SIGKILL)
	}
	return w, err
}

// wait sees the process to its end.
func (w *worker) wait() {
	var info unix.Siginfo
	for errors.Is(unix.Waitid(unix.P_PID, w.cmd.Process.Pid, &info, unix.WEXITED|unix.WNOWAIT, nil), syscall.EINTR) {
	}
	// The process is reaped after the last signal, so that its number, which is its
	// group's, cannot have become another's.
	_ = syscall.Kill(-w.cmd.Process.Pid, syscall.SIGKILL) // what it started; there may be nothing
	_ = w.cmd.Wait()                                      // its error repeats the ProcessState
	w.out.close()
	w.mu.Lock()
	w.how = w.cause
	w.mu.Unlock()
	if w.how == "" {
		w.how = ending(w.cmd.ProcessState)
	}
	close(w.ended)
	_ = w.conn.Close() // wakes who waits for an answer
}

// ending says how a process ended.
func ending(s *os.ProcessState) string {
	if ws, ok := s.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		return fmt.Sprintf("was ended by signal %q", ws.Signal().String())
	}
	return fmt.Sprintf("exited with %d", s.ExitCode())
}

// end ends the process and what it started, for the given cause. With SIGABRT it
// says first where it hung.
func (w *worker) end(cause string, signal syscall.Signal) {
	w.mu.Lock()
	if w.cause == "" {
		w.cause = cause
	}
	w.mu.Unlock()
	select {
	case <-w.ended:
		return
	default:
	}
	if signal != syscall.SIGKILL {
		_ = w.cmd.Process.Signal(signal) // it may be gone
		select {
		case <-w.ended:
			return
		case <-time.After(lastWords):
		}
	}
	_ = w.cmd.Process.Kill() // the rest of its group follows in wait
	<-w.ended
}

// leave lets the worker end on its own: what its script registered for that runs.
func (w *worker) leave() {
	_ = w.conn.CloseWrite() // the worker sees the end of its requests
	select {
	case <-w.ended:
	case <-time.After(leaveTime):
		w.end("it did not leave on its own", syscall.SIGKILL)
	}
}

func (w *worker) gone() bool {
	select {
	case <-w.ended:
		return true
	default:
		return false
	}
}

// startMeta and failedMeta are the metas of frames.
type startMeta struct {
	Script    string  `json:"script,omitempty"`
	Predictor *Source `json:"predictor,omitempty"`
}

type failedMeta struct {
	Stage string `json:"stage"` // import, contract, init or load
	Error string `json:"error"`
}

// initialise loads the script in the worker and waits until init() has returned.
func (w *worker) initialise(ctx context.Context, p *Pool) error {
	deadline := time.Now().Add(p.opts.InitTimeout)
	stop := context.AfterFunc(ctx, func() { _ = w.conn.SetDeadline(time.Now()) })
	defer stop()
	_ = w.conn.SetDeadline(deadline) // a socket takes one
	source := rawSource
	if p.opts.Predictor != nil {
		source = predictorSource
	}
	err := writeFrame(w.direct, kindStart, 0, startMeta{p.opts.Script, p.opts.Predictor}, source)
	var f frame
	if err == nil {
		f, err = readFrame(w.reader)
	}
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, os.ErrDeadlineExceeded):
		w.end("was not ready in time", syscall.SIGABRT)
		if p.opts.Predictor != nil {
			return w.failure(fmt.Sprintf("the model was not loaded within %v", p.opts.InitTimeout))
		}
		return w.failure(fmt.Sprintf("init() did not return within %v", p.opts.InitTimeout))
	case err == nil && f.kind == kindReady:
		if err := f.decode(&w.about); err != nil {
			w.end("it talks nonsense", syscall.SIGKILL)
			return err
		}
		w.out.started()
		return nil
	case err == nil && f.kind == kindFailed:
		var m failedMeta
		if err := f.decode(&m); err != nil {
			m.Error = err.Error()
		}
		select { // it exits by itself
		case <-w.ended:
		case <-time.After(leaveTime):
			w.end("it did not leave on its own", syscall.SIGKILL)
		}
		switch m.Stage {
		case "contract":
			return w.failure(m.Error)
		case "init":
			return w.failure("init() failed: " + m.Error)
		case "load":
			return w.failure("the model cannot be loaded: " + m.Error)
		}
		return w.failure("the script cannot be imported: " + m.Error)
	}
	// The connection broke: the process ends or has ended.
	select {
	case <-w.ended:
	case <-time.After(leaveTime):
		w.end("talked nonsense", syscall.SIGKILL)
	}
	if p.opts.Predictor != nil {
		return w.failure("its process " + w.how + " before the model was loaded")
	}
	return w.failure("the script " + w.how + " before init() returned")
}

// ScriptError says that a script failed before it could take requests. Its text
// has the script's output behind the first line.
type ScriptError struct {
	Message string // one sentence
	Output  string // the first and the last bytes of what it printed
}

// Error returns the message and, in further lines, the output.
func (e *ScriptError) Error() string {
	if e.Output == "" {
		return e.Message
	}
	return e.Message + "\n" + e.Output
}

func (w *worker) failure(message string) error {
	return &ScriptError{Message: strings.ReplaceAll(message, "\n", " "), Output: w.out.said()}
}

// DiedError says that a worker ended while it had a request.
type DiedError struct {
	How   string
	Model bool // it ran a model without a script
}

// HTTPStatus returns the status of the answer to that request.
func (e *DiedError) HTTPStatus() int { return http.StatusBadGateway }

func (e *DiedError) Error() string {
	if e.Model {
		return "the model's process " + e.How + " in an inference"
	}
	return "the script " + e.How + " in run()"
}

// errNotTaken says that a worker ended before it was given the request.
var errNotTaken = errors.New("the worker ended before it took the request")

// requestMeta is the meta of a request's frame.
type requestMeta struct {
	Method  string      `json:"method"`
	Query   string      `json:"query,omitempty"`
	Type    string      `json:"type,omitempty"`
	Headers [][2]string `json:"headers,omitempty"`
}

// exchange has the worker answer a request until deadline.
func (w *worker) exchange(r *Request, deadline time.Time) (*Answer, error) {
	if w.gone() {
		return nil, errNotTaken
	}
	meta := requestMeta{Method: r.Method, Query: r.Query, Type: r.Type}
	if w.about.Headers {
		meta.Headers = r.Headers()
	}
	_ = w.conn.SetDeadline(deadline) // a socket takes one
	w.out.begin(r.ID)
	defer w.out.end()
	w.number++
	err := writeFrame(w.direct, kindRequest, w.number, meta, r.Body)
	switch {
	case isTalk(err):
		return nil, err // nothing was sent
	case err != nil && !errors.Is(err, os.ErrDeadlineExceeded):
		w.end("closed its connection", syscall.SIGKILL) // unless it has ended
		return nil, errNotTaken
	}
	var f frame
	if err == nil {
		f, err = readFrame(w.reader)
	}
	a := &Answer{Body: f.body}
	if err == nil {
		if f.kind != kindAnswer || f.number != w.number {
			err = atelier.Errorf(atelier.Invalid, "a frame of kind %d with number %d came, kind %d with number %d was expected", f.kind, f.number, kindAnswer, w.number)
		} else {
			err = f.decode(a)
		}
	}
	if err == nil {
		w.answered.Add(1)
		return a, nil
	}
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		w.end("did not return in time", syscall.SIGABRT)
		return nil, errTooSlow
	case isTalk(err):
		w.end("broke off its talk with the server ("+err.Error()+")", syscall.SIGKILL)
	}
	select {
	case <-w.ended:
	case <-time.After(leaveTime): // the script closed the connection, or ends slowly
		w.end("broke off its talk with the server", syscall.SIGKILL)
	}
	return nil, &DiedError{How: w.how}
}

// isTalk reports whether err is of what was said rather than of the connection.
func isTalk(err error) bool {
	var e *atelier.Error
	return errors.As(err, &e)
}

// resident returns the resident memory of a process in bytes, 0 where it is gone.
func resident(pid int) int64 {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/statm")
	if err != nil {
		return 0
	}
	fields := strings.Fields(string(b))
	if len(fields) < 2 {
		return 0
	}
	pages, err := strconv.ParseInt(fields[1], 10, 64)
	if err != nil {
		return 0
	}
	return pages * int64(os.Getpagesize())
}
