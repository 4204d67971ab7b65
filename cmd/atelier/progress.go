package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/term"

	atelier "github.com/atelier-edge/atelier"
)

// progress shows how far long work is: a bar that redraws on a terminal, a line
// every few seconds elsewhere. It may be used by several goroutines.
type progress struct {
	mu       sync.Mutex
	w        io.Writer
	terminal bool
	quiet    bool
	label    string
	total    int64
	done     int64
	began    time.Time // when the first came, for the rate
	shown    time.Time
}

func (a *app) newProgress(label string, total int64) *progress {
	f, ok := a.err.(*os.File)
	return &progress{
		w: a.err, quiet: a.quiet, terminal: ok && term.IsTerminal(int(f.Fd())),
		label: label, total: total, shown: time.Now(),
	}
}

// Write counts bytes that passed, so that a progress fits into an io.TeeReader.
func (p *progress) Write(b []byte) (int, error) {
	p.add(int64(len(b)))
	return len(b), nil
}

func (p *progress) add(n int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.began.IsZero() {
		p.began = time.Now()
	}
	p.done += n
	every := 5 * time.Second
	if p.terminal {
		every = 100 * time.Millisecond
	}
	if time.Since(p.shown) >= every {
		p.draw()
	}
}

// finish draws the last state and ends the line.
func (p *progress) finish() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.terminal && !p.quiet {
		p.draw()
		_, _ = fmt.Fprintln(p.w)
	}
}

func (p *progress) draw() {
	p.shown = time.Now()
	if p.quiet {
		return
	}
	share := 1.0
	if p.total > 0 {
		share = min(float64(p.done)/float64(p.total), 1)
	}
	var elapsed time.Duration
	if !p.began.IsZero() {
		elapsed = time.Since(p.began)
	}
	rate := float64(p.done) / max(elapsed.Seconds(), 0.001)
	text := fmt.Sprintf("%3.0f%%  %s of %s  %s/s", share*100, atelier.FormatBytes(p.done), atelier.FormatBytes(p.total), atelier.FormatBytes(int64(rate)))
	if !p.terminal {
		_, _ = fmt.Fprintf(p.w, "%s  %s\n", p.label, text)
		return
	}
	const width = 24
	full := int(share * width)
	bar := strings.Repeat("█", full) + strings.Repeat("░", width-full)
	_, _ = fmt.Fprintf(p.w, "\r\x1b[K%s  %s  %s", printable(p.label), bar, text)
}
