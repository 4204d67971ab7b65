// Package logfile keeps the logs of modules: files that do not grow beyond a size, with
// one older file beside each. It knows nothing of modules.
package logfile

import (
	"bytes"
	"io"
	"os"
)

// defaultLimit bounds the log of a spec that does not say how large it may be.
const defaultLimit = 10 << 20

// LineLimit bounds the last line that is remembered.
const LineLimit = 4 << 10

// Older is what is added to the log's name for the one older file.
const Older = ".1"

// File writes a log that never grows beyond twice its limit: when the limit
// is reached, the file becomes the older one and a new one begins. It remembers
// the last line that was not empty.
//
// Write never fails: a full disk must not stop a module that merely talks.
type File struct {
	path  string
	limit int64
	file  *os.File // nil while it cannot be opened
	size  int64
	line  []byte // the line in progress
	last  []byte // the last complete one that was not empty
}

// Open opens the log at path, which begins anew at limit bytes; 0 is 10 MiB.
func Open(path string, limit int64) *File {
	if limit <= 0 {
		limit = defaultLimit
	}
	l := &File{path: path, limit: limit}
	l.open()
	return l
}

func (l *File) open() {
	f, err := os.OpenFile(l.path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return
	}
	if info, err := f.Stat(); err == nil {
		l.size = info.Size()
	}
	l.file = f
}

// Write implements io.Writer.
func (l *File) Write(p []byte) (int, error) {
	l.remember(p)
	for rest := p; len(rest) > 0; {
		if l.size > 0 && l.size+int64(len(rest)) > l.limit {
			l.turn()
		}
		if l.file == nil {
			l.open()
		}
		if l.file == nil {
			break
		}
		n, err := l.file.Write(rest[:min(int64(len(rest)), l.limit)])
		l.size += int64(n)
		if err != nil {
			break
		}
		rest = rest[n:]
	}
	return len(p), nil
}

// turn makes the log the older one.
func (l *File) turn() {
	if l.file != nil {
		_ = l.file.Close() // the bytes are with the kernel; nothing is left to be done about a failure
		l.file = nil
	}
	if os.Rename(l.path, l.path+Older) != nil {
		_ = os.Remove(l.path) // the limit counts more than old lines
	}
	l.size = 0
	l.open()
}

func (l *File) remember(p []byte) {
	for {
		nl := bytes.IndexByte(p, '\n')
		part := p
		if nl >= 0 {
			part = p[:nl]
		}
		if room := LineLimit - len(l.line); room > 0 {
			l.line = append(l.line, part[:min(room, len(part))]...)
		}
		if nl < 0 {
			return
		}
		if line := bytes.TrimSpace(l.line); len(line) > 0 {
			l.last = append(l.last[:0], line...)
		}
		l.line = l.line[:0]
		p = p[nl+1:]
	}
}

// LastLine returns the last line that was not empty, also where it has no end.
func (l *File) LastLine() string {
	if line := bytes.TrimSpace(l.line); len(line) > 0 {
		return string(bytes.ToValidUTF8(line, []byte("�")))
	}
	return string(bytes.ToValidUTF8(l.last, []byte("�")))
}

// Close closes the file.
func (l *File) Close() {
	if l.file != nil {
		_ = l.file.Close() // see turn
	}
}

// LastLine returns the last line of the log at path that is not empty, "" where
// there is none.
func LastLine(path string) string {
	r, err := OpenTail(path, 2*LineLimit)
	if err != nil {
		return ""
	}
	defer r.Close()
	l := &File{limit: 1}
	b, _ := io.ReadAll(r) // what could be read is good enough
	l.remember(b)
	return l.LastLine()
}

// OpenTail opens the last max bytes of the log at path: of the older file too
// where the present one is shorter.
func OpenTail(path string, max int64) (io.ReadCloser, error) {
	var t tail
	for _, name := range []string{path, path + Older} {
		if max <= 0 {
			break
		}
		f, err := os.Open(name)
		if os.IsNotExist(err) {
			continue
		}
		if err != nil {
			t.Close()
			return nil, err
		}
		t.files = append([]*os.File{f}, t.files...)
		size, err := f.Seek(0, io.SeekEnd)
		if err == nil && size > max {
			size, err = max, seekTo(f, size-max)
		} else if err == nil {
			err = seekTo(f, 0)
		}
		if err != nil {
			t.Close()
			return nil, err
		}
		// The log may grow meanwhile; the caller asked for max bytes.
		t.readers = append([]io.Reader{io.LimitReader(f, size)}, t.readers...)
		max -= size
	}
	t.Reader = io.MultiReader(t.readers...)
	return &t, nil
}

func seekTo(f *os.File, offset int64) error {
	_, err := f.Seek(offset, io.SeekStart)
	return err
}

// tail reads several files one after the other.
type tail struct {
	io.Reader
	files   []*os.File
	readers []io.Reader
}

// Close implements io.Closer.
func (t *tail) Close() error {
	for _, f := range t.files {
		_ = f.Close() // only read from
	}
	return nil
}
