package python

import (
	"bytes"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/atelier-edge/atelier/serving/direct"
)

// What is kept of what a script prints. All of it is read, so that the script
// does not wait; more than this for one request is counted and dropped.
const (
	maxLine   = 8 << 10   // longer lines are logged in parts
	maxLogged = 256 << 10 // of one request, or of init()
	maxLines  = 2000      // the same in lines
	// keptHead and keptTail are what of init()'s output is told when it fails.
	keptHead = 1 << 10
	keptTail = 2 << 10
)

// output reads what one worker prints, standard output and standard error in the
// order in which they were written, and logs it line by line under the request
// that the worker has.
type output struct {
	file *os.File // our end of the pipe, non-blocking
	done chan struct{}

	mu      sync.Mutex
	log     *slog.Logger // with the worker's name
	request string       // "" while the worker has none
	line    []byte       // begun and not ended
	buffer  []byte
	logged  int // bytes of this request
	lines   int
	dropped int64
	init    *ends // nil once init() has returned
}

func newOutput(file *os.File, log *slog.Logger) *output {
	return &output{file: file, done: make(chan struct{}), log: log, buffer: make([]byte, 32<<10), init: &ends{}}
}

// read reads until the pipe ends or its deadline comes.
func (o *output) read() {
	defer close(o.done)
	if raw, err := o.file.SyscallConn(); err == nil {
		_ = raw.Read(func(fd uintptr) (done bool) { return o.pump(int(fd), -1) }) // the pipe's end is all that there is to learn
	}
}

// pump reads what is there, at most the given bytes (-1 for no bound), and
// reports whether the pipe has ended.
func (o *output) pump(fd, most int) (ended bool) {
	for read := 0; most < 0 || read < most; {
		o.mu.Lock()
		n, err := direct.Read(uintptr(fd), o.buffer)
		if n > 0 {
			read += n
			o.take(o.buffer[:n])
		}
		o.mu.Unlock()
		switch {
		case direct.Again(err):
			return false
		case err != nil || n == 0:
			return true
		}
	}
	return false
}

// begin says that what follows belongs to a request.
func (o *output) begin(request string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.turn(request)
}

// end says that the request is answered. What the script printed before that is
// in the pipe, and is read first.
func (o *output) end() {
	const most = 128 << 10 // a thread of the script's may go on printing
	if raw, err := o.file.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) { o.pump(int(fd), most) }) // it fails where the worker has ended, and all was read
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.turn("")
}

// started says that init() has returned.
func (o *output) started() {
	o.end()
	o.mu.Lock()
	defer o.mu.Unlock()
	o.init = nil
}

// said returns what init() printed, the middle left out where it is long.
func (o *output) said() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.init == nil {
		return ""
	}
	return o.init.String()
}

// close reads what is left for a moment and gives the pipe back. A process that
// the script let go of may hold its other end.
func (o *output) close() {
	_ = o.file.SetReadDeadline(time.Now().Add(200 * time.Millisecond)) // without it the pipe ends all the same
	<-o.done
	_ = o.file.Close() // it was only read
	o.mu.Lock()
	defer o.mu.Unlock()
	o.turn("")
}

// turn ends what belongs to one request and begins another.
func (o *output) turn(request string) {
	if len(o.line) > 0 {
		o.tell(o.line)
		o.line = o.line[:0]
	}
	if o.dropped > 0 {
		o.log.Warn("the script printed more than is logged", "dropped_bytes", o.dropped, "request", o.request)
	}
	o.request, o.logged, o.lines, o.dropped = request, 0, 0, 0
}

func (o *output) take(p []byte) {
	if o.init != nil {
		o.init.add(p)
	}
	for len(p) > 0 {
		if o.lines >= maxLines || o.logged >= maxLogged {
			o.dropped += int64(len(p) + len(o.line))
			o.line = o.line[:0]
			return
		}
		part, rest, whole := bytes.Cut(p, []byte{'\n'})
		if room := maxLine - len(o.line); len(part) > room {
			part, rest, whole = p[:room], p[room:], true
		}
		if p = rest; !whole {
			o.line = append(o.line, part...)
			return
		}
		if len(o.line) > 0 {
			part = append(o.line, part...)
			o.line = part[:0]
		}
		o.tell(part)
	}
}

func (o *output) tell(line []byte) {
	o.lines++
	o.logged += len(line)
	if line = bytes.TrimRight(line, "\r\n"); len(line) == 0 {
		return
	}
	if o.request == "" {
		o.log.Info(string(line))
		return
	}
	o.log.Info(string(line), "request", o.request)
}

// ends keeps the first and the last bytes of what is added.
type ends struct {
	head, tail []byte
	total      int64
}

func (e *ends) add(p []byte) {
	e.total += int64(len(p))
	n := min(len(p), keptHead-len(e.head))
	e.head, p = append(e.head, p[:n]...), p[n:]
	if len(p) > keptTail {
		p = p[len(p)-keptTail:]
	}
	e.tail = append(e.tail, p...)
	if len(e.tail) > 2*keptTail {
		e.tail = append(e.tail[:0], e.tail[len(e.tail)-keptTail:]...)
	}
}

func (e *ends) String() string {
	tail := e.tail[max(0, len(e.tail)-keptTail):]
	text := string(e.head)
	if out := e.total - int64(len(e.head)+len(tail)); out > 0 {
		text += fmt.Sprintf("\n[%d bytes left out]\n", out)
	}
	return strings.TrimSpace(strings.ToValidUTF8(text+string(tail), "�"))
}
