package agent

import (
	"os"
	"sync"

	"github.com/atelier-edge/atelier/internal/durable"
)

// logLimit is the size in bytes at which the agent's log begins anew, keeping
// one older file.
const logLimit = 1 << 20

// logFile is the agent's own copy of its log, so that it can be fetched from the
// hub whatever the device's system does with standard error.
type logFile struct {
	path string

	mu   sync.Mutex
	file *os.File
	size int64
}

func openLog(path string) (*logFile, error) {
	l := &logFile{path: path}
	return l, durable.Explain(l.open(), "open the log "+path)
}

func (l *logFile) open() error {
	f, err := os.OpenFile(l.path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	info, err := f.Stat()
	if err != nil {
		_ = f.Close() // nothing was written
		return err
	}
	l.file, l.size = f, info.Size()
	return nil
}

// Write appends a line. A disk that is full loses lines and nothing else: the
// agent must go on.
func (l *logFile) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.size >= logLimit {
		if err := os.Rename(l.path, l.path+".1"); err == nil {
			old := l.file
			if err := l.open(); err == nil {
				_ = old.Close() // its lines were written one by one
			}
		}
	}
	n, err := l.file.Write(p)
	l.size += int64(n)
	if err != nil {
		return len(p), nil
	}
	return n, nil
}

// Close closes the file.
func (l *logFile) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.file.Close()
}
